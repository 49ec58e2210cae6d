"""Which callers wait for which query: coalesces equal queries, delivers answers, knows when none is in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from research.errors import ServiceError
from services.retriever.types import Query, QueryResult, TokenIds


@dataclass(slots=True, eq=False)
class PendingQuery:
    """One query in flight and all callers that wait for its answer."""

    query: Query
    since: float
    waiters: list[asyncio.Future[QueryResult]] = field(default_factory=list)
    ids: TokenIds = field(default_factory=list)

    @property
    def abandoned(self) -> bool:
        """Whether no caller waits any longer."""
        return all(waiter.done() for waiter in self.waiters)


class InFlight:
    """The queries in flight.

    Args:
        merge: whether equal queries are coalesced.
    """

    def __init__(self, *, merge: bool) -> None:
        self._merge = merge
        self._by_key: dict[tuple[str, str, int], PendingQuery] = {}
        self._open: set[PendingQuery] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()

    def new_count(self, queries: Sequence[Query]) -> int:
        """How many new pending queries `register` would create."""
        return len({query.key for query in queries if query.key not in self._by_key}) if self._merge else len(queries)

    def register(
        self, queries: Sequence[Query], now: float
    ) -> tuple[list[PendingQuery], list[asyncio.Future[QueryResult]]]:
        """Register the queries of a caller; returns the new pending ones, and one future per query."""
        new: list[PendingQuery] = []
        waiters: list[asyncio.Future[QueryResult]] = []
        for query in queries:
            pending = self._by_key.get(query.key) if self._merge else None
            if pending is None:
                pending = self._by_key[query.key] = PendingQuery(query, now)
                self._open.add(pending)
                new.append(pending)
            waiter: asyncio.Future[QueryResult] = asyncio.get_running_loop().create_future()
            pending.waiters.append(waiter)
            waiters.append(waiter)
        if new:
            self._none_open.clear()
        return new, waiters

    def resolve(self, pending: PendingQuery, answer: QueryResult) -> int:
        """Deliver the answer to every caller that still waits; returns their number."""
        waiting = self._close(pending)
        for waiter in waiting:
            waiter.set_result(answer)
        return len(waiting)

    def fail(self, pending: PendingQuery, reason: str, cause: Exception) -> None:
        """Raise a ServiceError in every caller that still waits."""
        for waiter in self._close(pending):
            error = ServiceError(reason)
            error.__cause__ = cause
            waiter.set_exception(error)

    def fail_all(self, reason: str, cause: Exception) -> None:
        """Fail every query in flight."""
        for pending in list(self._open):
            self.fail(pending, reason, cause)

    def discard(self, pending: PendingQuery) -> None:
        """Forget an abandoned query."""
        self._close(pending)

    async def all_done(self) -> None:
        """Return once no query is in flight."""
        await self._none_open.wait()

    def _close(self, pending: PendingQuery) -> list[asyncio.Future[QueryResult]]:
        self._open.discard(pending)
        if self._by_key.get(pending.query.key) is pending:
            del self._by_key[pending.query.key]
        if not self._open:
            self._none_open.set()
        return [waiter for waiter in pending.waiters if not waiter.done()]
