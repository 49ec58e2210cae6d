"""Which policy server samples a turn."""

from __future__ import annotations

import random
from typing import Literal

# A home with more than this times the mean load takes no new episode (consistent hashing with bounded load).
_MOST_LOAD = 1.25


class Router:
    """Chooses one of `servers` by its number, and counts the requests that each has.

    `random` sends each turn anywhere. `sticky` lets an episode stay where it began; those of a group begin together,
    unless too many requests are there.
    """

    def __init__(self, servers: int, routing: Literal["sticky", "random"], chance: random.Random) -> None:
        self._routing, self._chance = routing, chance
        self._loads = [0] * servers
        self._total = 0
        self._homes: dict[int, int] = {}

    def choose(self, group: int, last: int | None) -> int:
        """The server of the next turn of an episode of `group`; `last` had its last turn."""
        if self._routing == "random":
            server = self._chance.randrange(len(self._loads))
        else:
            server = self._first(group) if last is None else last
        self._loads[server] += 1
        self._total += 1
        return server

    def ended(self, server: int) -> None:
        """A request of `server` has ended."""
        self._loads[server] -= 1
        self._total -= 1

    def _first(self, group: int) -> int:
        count = len(self._loads)
        home = self._homes.setdefault(group, self._chance.randrange(count))
        most = _MOST_LOAD * (1 + self._total) / count
        # The least loaded server is never above the mean.
        return next(n for step in range(count) if self._loads[n := (home + step) % count] <= most)
