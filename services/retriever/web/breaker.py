"""Notices an engine that fails again and again: then nobody pays for more of it, and `/readyz` says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

Key = tuple[str, int]  # a query and a number of results

_IN_A_ROW = 3
_PAUSE_SECONDS = 10.0
_MOST_DOUBLINGS = 5


class Breaker:
    """Whether an engine fails, by what it did last: one query that always fails, however often, is not its outage.

    Who pauses while it does may call `try_again` as often as he likes: one query is asked at growing distances.

    Args:
        ask: begins to ask a query, and tells `failed`, `answered` or `well`.
    """

    def __init__(self, ask: Callable[[Key], asyncio.Task[object]]) -> None:
        self._ask = ask
        self._failed: set[Key] = set()  # in a row
        self._why: str | None = None
        self._answered: Key | None = None
        self._last: Key | None = None
        self._tries, self._due = 0, 0.0
        self._trying: asyncio.Task[object] | None = None

    @property
    def failing(self) -> str | None:
        """The last failure, if several queries failed in a row."""
        return self._why if len(self._failed) >= _IN_A_ROW else None

    def failed(self, key: Key, why: str) -> None:
        """Note a failure of the engine."""
        self._failed.add(key)
        self._last, self._why = key, why
        self._pause()

    def answered(self, key: Key) -> None:
        """Note an answer."""
        self._answered = key
        self.well()

    def well(self) -> None:
        """Note that the engine does not fail: it answers, or refuses for a reason of its own."""
        self._failed.clear()
        self._tries = 0

    def try_again(self) -> None:
        """Ask one query, if it is time for that: one that was answered before, as the others may be what fails."""
        key = self._answered or self._last
        if self.failing is None or key is None or time.monotonic() < self._due:
            return
        if self._trying is None or self._trying.done():
            self._tries += 1
            self._pause()
            self._trying = self._ask(key)

    def _pause(self) -> None:
        self._due = time.monotonic() + _PAUSE_SECONDS * 2 ** min(self._tries, _MOST_DOUBLINGS)
