"""The built-in question set: read out of the built-in corpus by code alone.

Extractors turn single passages into facts ("Dracula" —creator→ "Bram Stoker"). Every fact makes a one-hop question;
two or three facts that meet in passages make a chain ("In what year was the author of the novel Dracula born?"); two
facts of one relation make a comparison ("Who was born first, …?").

There are three sets. Training; held out by entity: titles that come up together in a chain form a group, a hash of
the group's name sends it to one side, and a chain or comparison across sides is left out; held out by template: some
patterns are never trained on, and ask about nothing that training asks about, either.
"""

from builtin.questions.build import QuestionSplit, build_questions
from builtin.questions.verify import verify

__all__ = ["EDITION", "QuestionSplit", "build_questions", "verify"]

EDITION = 3
"""Counts the changes of what `build_questions` makes; sets of another edition are made anew."""
