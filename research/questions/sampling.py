"""Choosing a part of a question set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from research.errors import ConfigurationError
from research.questions.model import Question


def first_of_each_kind(questions: Sequence[Question], counts: int | Mapping[str, int]) -> list[Question]:
    """The first questions of each kind, new templates apart, in their order; sets are stored shuffled.

    `counts` is one number for every kind, or a number per `Question.stratum`, which excludes the others.
    Raises ConfigurationError if it names one that no question has.
    """
    known = {question.stratum for question in questions}
    wanted = dict.fromkeys(known, counts) if isinstance(counts, int) else counts
    if unknown := sorted(set(wanted) - known):
        raise ConfigurationError(
            f"evaluation: no held-out question has kind {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    seen: Counter[str] = Counter()
    chosen = []
    for question in questions:
        seen[question.stratum] += 1
        if seen[question.stratum] <= wanted.get(question.stratum, 0):
            chosen.append(question)
    return chosen
