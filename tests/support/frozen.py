"""Import last where others fork from: what is there by now is no garbage, and no child needs to look through it.

A collection would also write to each object, so that the child gets a copy of nearly all memory.
"""

import gc

gc.collect()
gc.freeze()
