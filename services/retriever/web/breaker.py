"""Notices an engine that fails again and again: then nobody pays for more of it, and `/readyz` says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

Key = tuple[str, int]  # a query and a number of results

_IN_A_ROW = 3
_PAUSE_SECONDS = 10.0
_MOST_DOUBLINGS = 5


class Breaker:
    """Whether an engine fails, by what it did last.

    Who pauses while it does may ask `try_again` as often as he likes: the last query that failed is asked again at
    growing distances, until there is an answer.

    Args:
        ask: asks a query, and tells `failed` or `well`.
    """

    def __init__(self, ask: Callable[[Key], Awaitable[object]]) -> None:
        self._ask = ask
        self._in_a_row, self._due = 0, 0.0
        self._last: tuple[Key, str] | None = None
        self._trying: asyncio.Task[object] | None = None

    @property
    def failing(self) -> str | None:
        """The last failure, if there were several in a row."""
        return self._last[1] if self._last is not None and self._in_a_row >= _IN_A_ROW else None

    def failed(self, key: Key, why: str) -> None:
        """Note a failure of the engine."""
        self._in_a_row += 1
        doublings = min(max(0, self._in_a_row - _IN_A_ROW), _MOST_DOUBLINGS)
        self._last, self._due = (key, why), time.monotonic() + _PAUSE_SECONDS * 2**doublings

    def well(self) -> None:
        """Note an answer."""
        self._in_a_row = 0

    def try_again(self) -> None:
        """Ask the last query that failed, if it is time for that."""
        if self.failing is None or self._last is None or time.monotonic() < self._due:
            return
        if self._trying is None or self._trying.done():
            self._trying = asyncio.ensure_future(self._ask(self._last[0]))
            self._trying.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def close(self) -> None:
        """Break off what `try_again` began."""
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)
