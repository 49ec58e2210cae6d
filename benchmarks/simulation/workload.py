"""What is to be done: groups of episodes as lengths and times, without content."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TurnShape:
    """Sampled tokens of a turn, seconds of the search after it (None: no search), tokens of its result."""

    sampled: int
    search: float | None = None
    result: int = 0


@dataclass(frozen=True, slots=True)
class EpisodeShape:
    """An episode: tokens of its prompt, and its turns."""

    prompt: int
    turns: tuple[TurnShape, ...]

    @property
    def sampled(self) -> int:
        return sum(turn.sampled for turn in self.turns)

    @property
    def tokens(self) -> int:
        return self.prompt + sum(turn.sampled + turn.result for turn in self.turns)


@dataclass(frozen=True, slots=True)
class GroupShape:
    """The episodes of one question; `computed` are tokens that the learner computes for it, 0 if it has no signal."""

    episodes: tuple[EpisodeShape, ...]
    computed: int

    @property
    def signal(self) -> bool:
        return self.computed > 0


def drawn(groups: Sequence[GroupShape], chance: random.Random) -> Iterator[GroupShape]:
    """Groups drawn with replacement, without end."""
    while True:
        yield chance.choice(groups)


@dataclass(frozen=True, slots=True)
class StatedShape:
    """Episodes of which only means are known; the rest is assumed.

    Attributes:
        prompt, sampled, searches, result: means, in tokens (of one result) and per episode.
        spread: sigma of the log-normal factor on the tokens of each turn.
        rambling: share of episodes whose last turn goes on to `limit` sampled tokens.
        signal: share of groups whose rewards differ.
        group: episodes per group.
    """

    prompt: int
    sampled: int
    searches: float
    result: int
    spread: float
    rambling: float
    limit: int
    signal: float
    group: int

    def groups(self, count: int, chance: random.Random) -> list[GroupShape]:
        """`count` groups. An episode has one search at least; the others are a Poisson number."""
        made = []
        for _ in range(count):
            episodes = tuple(self._episode(chance) for _ in range(self.group))
            computed = sum(episode.tokens for episode in episodes) if chance.random() < self.signal else 0
            made.append(GroupShape(episodes, computed))
        return made

    def _episode(self, chance: random.Random) -> EpisodeShape:
        searches = 1 + _poisson(self.searches - 1, chance)
        mean = self.sampled / (1 + self.searches)
        # A log-normal factor has the mean exp(sigma^2 / 2).
        lengths = [
            max(1, round(mean * chance.lognormvariate(-(self.spread**2) / 2, self.spread))) for _ in range(searches + 1)
        ]
        if chance.random() < self.rambling:
            lengths[-1] = max(lengths[-1], self.limit - sum(lengths[:-1]) - searches * self.result)
        turns = [TurnShape(length, 0.0, self.result) for length in lengths[:-1]]
        return EpisodeShape(self.prompt, (*turns, TurnShape(lengths[-1])))


def _poisson(mean: float, chance: random.Random) -> int:
    """Arrivals of rate 1 until `mean`."""
    count, at = 0, chance.expovariate(1.0)
    while at < mean:
        count, at = count + 1, at + chance.expovariate(1.0)
    return count
