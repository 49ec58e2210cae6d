"""Who waits for which query: merges equal ones, hands out answers, knows when nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from research.errors import ServiceError
from services.retriever.types import Answer, Query, TokenIds


@dataclass(slots=True, eq=False)
class Work:
    """One query under way and everyone who waits for its answer."""

    query: Query
    since: float
    waiters: list[asyncio.Future[Answer]] = field(default_factory=list)
    ids: TokenIds = field(default_factory=list)

    @property
    def abandoned(self) -> bool:
        """Whether everyone who asked has gone."""
        return all(waiter.done() for waiter in self.waiters)


class Ledger:
    """The queries under way.

    Args:
        merge: whether equal queries share one piece of work.
    """

    def __init__(self, *, merge: bool) -> None:
        self._merge = merge
        self._by_key: dict[tuple[str, str, int], Work] = {}
        self._open: set[Work] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()

    def count_new(self, queries: Sequence[Query]) -> int:
        """How many pieces of work `enter` would begin."""
        return len({query.key for query in queries if query.key not in self._by_key}) if self._merge else len(queries)

    def enter(self, queries: Sequence[Query], now: float) -> tuple[list[Work], list[asyncio.Future[Answer]]]:
        """Note who asks; returns the work that is new, and one future for each query."""
        new: list[Work] = []
        waiters: list[asyncio.Future[Answer]] = []
        for query in queries:
            work = self._by_key.get(query.key) if self._merge else None
            if work is None:
                work = self._by_key[query.key] = Work(query, now)
                self._open.add(work)
                new.append(work)
            waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            work.waiters.append(waiter)
            waiters.append(waiter)
        if new:
            self._none_open.clear()
        return new, waiters

    def answer(self, work: Work, answer: Answer) -> int:
        """Give everyone who still waits the answer; returns how many they were."""
        waiting = self._close(work)
        for waiter in waiting:
            waiter.set_result(answer)
        return len(waiting)

    def fail(self, work: Work, reason: str, cause: Exception) -> None:
        """Tell everyone who still waits that there is no answer."""
        for waiter in self._close(work):
            error = ServiceError(reason)
            error.__cause__ = cause
            waiter.set_exception(error)

    def fail_all(self, reason: str, cause: Exception) -> None:
        """Tell everyone who waits for anything that there is no answer."""
        for work in list(self._open):
            self.fail(work, reason, cause)

    def drop(self, work: Work) -> None:
        """Forget work that nobody waits for."""
        self._close(work)

    async def all_done(self) -> None:
        """Return once nothing is under way."""
        await self._none_open.wait()

    def _close(self, work: Work) -> list[asyncio.Future[Answer]]:
        self._open.discard(work)
        if self._by_key.get(work.query.key) is work:
            del self._by_key[work.query.key]
        if not self._open:
            self._none_open.set()
        return [waiter for waiter in work.waiters if not waiter.done()]
