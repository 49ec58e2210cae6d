"""Python's garbage collector holds up every thread while it looks at objects: in a run, mostly between steps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER = 2**31 - 1


@contextmanager
def collected_between_steps() -> Iterator[None]:
    """Leave full collections to the caller (`gc.collect`), and what lives already out of all, until the end.

    A full one takes 0.2 s for what PyTorch and transformers load alone, and 0.1 s more with the episodes of a step of
    the paper's size. Those of young objects go on by themselves.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(before[0], before[1], _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
