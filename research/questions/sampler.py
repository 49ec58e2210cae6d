"""The order in which questions are asked: shuffled per epoch, mixed by kind, chosen for what they teach, resumable."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from research.errors import ConfigurationError
from research.questions.model import Question

# A template that was never asked is assumed worth asking. A new outcome counts as much as all before it.
_UNKNOWN, _NEWEST = 0.5, 0.5


class QuestionSampler:
    """Draws batches without end. The next questions depend only on the seed, `cursors`, `success` and `difficulty`.

    Among several candidates per question, it takes the one whose template is answered correctly nearest to half of the
    time: a group whose episodes are all correct or all wrong teaches nothing (sampling for learnability,
    https://arxiv.org/abs/2408.15099). For the same reason, a question is settled if its episodes were all right, or all
    wrong, whenever it was asked; of settled ones that come up again, only `settled_share` are asked.

    `success` is by template, the newest counting most; `difficulty` by question id: how often it was asked, and the sum
    of the shares of its episodes that were right.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        mix: Mapping[str, float],
        seed: int,
        *,
        candidates: int = 1,
        settled_share: float = 1.0,
    ) -> None:
        """`mix` gives the share of each kind in a batch; if it is empty, all questions form one pool.

        Raises ConfigurationError if the mix names a kind that no question has.
        """
        if not questions:
            raise ConfigurationError("questions.train holds no question")
        self._seed = seed
        self._candidates = candidates
        self._settled_share = settled_share
        self._shares = dict(mix) or {"": 1.0}
        self._pools = {kind: [q for q in questions if not kind or q.kind == kind] for kind in self._shares}
        for kind, pool in self._pools.items():
            if not pool:
                known = ", ".join(sorted({q.kind for q in questions}))
                raise ConfigurationError(f"questions.mix: no training question has kind {kind!r}; known: {known}")
        self._orders: dict[str, tuple[int, list[int]]] = {}  # by kind: an epoch, and the pool's order in it
        self.cursors = dict.fromkeys(self._shares, 0)
        self.success: dict[str, float] = {}
        self.difficulty: dict[str, list[float]] = {}

    def draw(self, count: int) -> list[Question]:
        """The next `count` questions, kinds in the order of the mix."""
        numbers = apportion(self._shares, count)
        return [self._next(kind) for kind, number in numbers.items() for _ in range(number)]

    def draw_instead_of(self, questions: Iterable[Question]) -> list[Question]:
        """One further question for each of these, of the same kind if there is a mix."""
        return [self._next(question.kind if question.kind in self._pools else "") for question in questions]

    def update_curriculum(self, outcomes: Iterable[tuple[Question, float]]) -> None:
        """Record the share of correct episodes of each question that was asked."""
        for question, share in outcomes:
            former = self.success.get(question.template, _UNKNOWN)
            self.success[question.template] = (1 - _NEWEST) * former + _NEWEST * share
            asked, right = self.difficulty.get(question.id, (0, 0.0))
            self.difficulty[question.id] = [asked + 1, right + share]

    def _next(self, kind: str) -> Question:
        candidates: list[Question] = []
        passed_over = 0
        while len(candidates) < self._candidates:
            cursor = self.cursors[kind]
            question = self._at(kind, cursor)
            self.cursors[kind] += 1
            # In a pool where every question is settled, one of them is asked.
            if passed_over < len(self._pools[kind]) and self._is_passed_over(kind, cursor, question):
                passed_over += 1
            else:
                candidates.append(question)
        return max(candidates, key=self._learnability)

    def _is_passed_over(self, kind: str, cursor: int, question: Question) -> bool:
        asked, right = self.difficulty.get(question.id, (0, 0.0))
        is_settled = asked > 0 and right in (0.0, asked)
        return is_settled and random.Random(f"{self._seed}/{kind}/{cursor}").random() >= self._settled_share

    def _learnability(self, question: Question) -> float:
        success = self.success.get(question.template, _UNKNOWN)
        return success * (1 - success)

    def _at(self, kind: str, cursor: int) -> Question:
        pool = self._pools[kind]
        epoch, position = divmod(cursor, len(pool))
        kept, order = self._orders.get(kind, (-1, []))
        if kept != epoch:
            order = list(range(len(pool)))
            random.Random(f"{self._seed}/{kind}/{epoch}").shuffle(order)
            self._orders[kind] = epoch, order
        return pool[order[position]]


def apportion(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """Split a count by shares, exactly, by largest remainders."""
    total = sum(shares.values())
    exact = {kind: count * share / total for kind, share in shares.items()}
    numbers = {kind: int(value) for kind, value in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: numbers[kind] - exact[kind])
    for kind in by_remainder[: count - sum(numbers.values())]:
        numbers[kind] += 1
    return numbers
