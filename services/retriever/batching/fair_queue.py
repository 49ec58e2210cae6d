"""Pending queries of many requests, taken in turn: one of each, so that a large request makes nobody wait for all."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from services.retriever.batching.in_flight import PendingQuery


class FairQueue:
    """Each request has its place in the turn; its queries keep their order. Not thread-safe."""

    def __init__(self) -> None:
        self._turn: OrderedDict[int, deque[PendingQuery]] = OrderedDict()
        self._held: set[PendingQuery] = set()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, pending: PendingQuery) -> bool:
        return pending in self._held

    def add(self, pending: Iterable[PendingQuery]) -> None:
        """Queue each for all requests that wait for it."""
        for query in pending:
            self._held.add(query)
            for request in query.requests:
                self.join(query, request)

    def join(self, query: PendingQuery, request: int) -> None:
        """One more request waits for a query that is held: it comes in whichever turn is first."""
        self._turn.setdefault(request, deque()).append(query)

    def first(self) -> PendingQuery | None:
        """The query whose turn it is, which `take` removes; None if there is none."""
        while self._turn:
            request, queries = next(iter(self._turn.items()))
            while queries and queries[0] not in self._held:
                queries.popleft()  # it came in the turn of another request
            if queries:
                return queries[0]
            del self._turn[request]
        return None

    def take(self) -> PendingQuery:
        """Remove the query that `first` returned; the turn passes to the next request."""
        request, queries = next(iter(self._turn.items()))
        query = queries.popleft()
        self._held.discard(query)
        if queries:
            self._turn.move_to_end(request)
        else:
            del self._turn[request]
        return query

    def sweep(self) -> list[PendingQuery]:
        """Remove and return what nobody waits for any longer."""
        gone = [query for query in self._held if query.abandoned]
        self._held.difference_update(gone)
        return gone

    def clear(self) -> None:
        """Forget everything."""
        self._turn.clear()
        self._held.clear()
