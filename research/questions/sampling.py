"""Choosing a part of a question set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from research.questions.model import Question


def first_of_each_kind(questions: Sequence[Question], count: int) -> list[Question]:
    """The first `count` questions of each kind, in their order; sets are stored shuffled."""
    seen: Counter[str] = Counter()
    chosen = []
    for question in questions:
        seen[question.kind] += 1
        if seen[question.kind] <= count:
            chosen.append(question)
    return chosen
