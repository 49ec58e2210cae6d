"""Which callers wait for which query: coalesces equal queries, delivers answers, knows when none is in flight."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from research.errors import ServiceError
from services.retriever.types import Query, QueryResult, TokenIds


@dataclass(slots=True, eq=False)
class PendingQuery:
    """One query in flight and all callers that wait for its answer; `requests` are those that waited when queued."""

    query: Query
    since: float
    requests: list[int] = field(default_factory=list)
    waiters: list[asyncio.Future[QueryResult]] = field(default_factory=list)
    ids: TokenIds = field(default_factory=list)

    @property
    def abandoned(self) -> bool:
        """Whether no caller waits any longer."""
        return all(waiter.done() for waiter in self.waiters)


@dataclass(frozen=True, slots=True)
class Registered:
    """A request: its number, the queries that are new, those in flight that it joined, and one future per query."""

    request: int
    new: list[PendingQuery] = field(default_factory=list)
    joined: list[PendingQuery] = field(default_factory=list)
    waiters: list[asyncio.Future[QueryResult]] = field(default_factory=list)


class InFlight:
    """The queries in flight.

    Args:
        merge: whether equal queries are coalesced.
    """

    def __init__(self, *, merge: bool) -> None:
        self._merge = merge
        self._by_key: dict[tuple[str, str, int], PendingQuery] = {}
        self._open: set[PendingQuery] = set()
        self._requests = itertools.count()
        self._none_open = asyncio.Event()
        self._none_open.set()

    def __len__(self) -> int:
        return len(self._open)

    def new(self, queries: Sequence[Query]) -> list[Query]:
        """Those for which `register` would create a pending query."""
        if not self._merge:
            return list(queries)
        return list({query.key: query for query in queries if query.key not in self._by_key}.values())

    def register(self, queries: Sequence[Query], now: float) -> Registered:
        """Register the queries of a caller."""
        found = Registered(next(self._requests))
        own: set[PendingQuery] = set()
        for query in queries:
            pending = self._by_key.get(query.key) if self._merge else None
            if pending is None:
                pending = self._by_key[query.key] = PendingQuery(query, now, [found.request])
                self._open.add(pending)
                found.new.append(pending)
            elif pending not in own:
                found.joined.append(pending)
            own.add(pending)
            waiter: asyncio.Future[QueryResult] = asyncio.get_running_loop().create_future()
            pending.waiters.append(waiter)
            found.waiters.append(waiter)
        if found.new:
            self._none_open.clear()
        return found

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
