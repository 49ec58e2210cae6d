"""The order in which questions are asked: shuffled by epoch, mixed by kind, and resumable from a few numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from research.errors import ConfigurationError
from research.questions.model import Question


class QuestionStream:
    """Draws batches without end. Which question comes next depends on the seed and the cursors alone."""

    def __init__(self, questions: Sequence[Question], mix: Mapping[str, float], seed: int) -> None:
        """`mix` gives the share of each kind in a batch; if it is empty, questions come as they are.

        Raises ConfigurationError if the mix names a kind that no question has.
        """
        if not questions:
            raise ConfigurationError("questions.train holds no question")
        self._seed = seed
        self._shares = dict(mix) or {"": 1.0}
        self._pools = {kind: [q for q in questions if not kind or q.kind == kind] for kind in self._shares}
        for kind, pool in self._pools.items():
            if not pool:
                known = ", ".join(sorted({q.kind for q in questions}))
                raise ConfigurationError(f"questions.mix: no training question is of kind {kind!r}; there are: {known}")
        self.cursors = dict.fromkeys(self._shares, 0)

    def draw(self, count: int) -> list[Question]:
        """The next `count` questions, kinds in the order of the mix."""
        drawn: list[Question] = []
        for kind, number in _apportion(self._shares, count).items():
            for _ in range(number):
                drawn.append(self._at(kind, self.cursors[kind]))
                self.cursors[kind] += 1
        return drawn

    def _at(self, kind: str, cursor: int) -> Question:
        pool = self._pools[kind]
        epoch, position = divmod(cursor, len(pool))
        order = list(range(len(pool)))
        random.Random(f"{self._seed}/{kind}/{epoch}").shuffle(order)
        return pool[order[position]]


def _apportion(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """Split a count by shares, exactly, by largest remainders."""
    total = sum(shares.values())
    exact = {kind: count * share / total for kind, share in shares.items()}
    numbers = {kind: int(value) for kind, value in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: numbers[kind] - exact[kind])
    for kind in by_remainder[: count - sum(numbers.values())]:
        numbers[kind] += 1
    return numbers
