"""Choosing a part of a question set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from research.errors import ConfigurationError
from research.questions.model import Question


def first_of_each_kind(questions: Sequence[Question], count: int, kinds: Sequence[str] = ()) -> list[Question]:
    """The first `count` questions of each kind, new templates apart, in their order; sets are stored shuffled.

    `kinds` (values of `Question.stratum`) leaves out all others; empty, none is left out.
    Raises ConfigurationError if one of them is unknown.
    """
    if unknown := set(kinds) - {question.stratum for question in questions}:
        known = ", ".join(sorted({question.stratum for question in questions}))
        raise ConfigurationError(
            f"evaluation.kinds: no held-out question is of kind {', '.join(sorted(unknown))}; there are: {known}"
        )
    seen: Counter[str] = Counter()
    chosen = []
    for question in questions:
        seen[question.stratum] += 1
        if seen[question.stratum] <= count and (not kinds or question.stratum in kinds):
            chosen.append(question)
    return chosen
