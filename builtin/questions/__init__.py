"""The built-in question set: derived from the built-in corpus by code alone.

Extractors turn single passages into facts ("Dracula" —creator→ "Bram Stoker"). Every fact makes a one-hop question;
two or three facts that meet in passages make a chain ("In what year was the author of the novel Dracula born?"); two
facts of one relation make a comparison ("Who was born first, …?").

There are three sets: training, held out by entity, and held out by template. By entity: titles that share a chain form
a group, a hash of the group's name assigns it to one side, and a chain or comparison across sides is excluded. By
template: some patterns are never trained on, and their questions ask about no entity that training asks about.
"""

from builtin.questions.build import QuestionSplit, build_questions
from builtin.questions.verify import verify

__all__ = ["EDITION", "QuestionSplit", "build_questions", "verify"]

EDITION = 3
"""Counts the changes of what `build_questions` makes; sets of another edition are made again."""
