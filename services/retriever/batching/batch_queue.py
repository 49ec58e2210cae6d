"""Work on its way to the encoder, shared by the event loop and the threads of the stages."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from services.retriever.batching.fair_queue import FairQueue
from services.retriever.batching.in_flight import PendingQuery


@dataclass(frozen=True, slots=True)
class Limits:
    """What the pipeline accepts.

    Attributes:
        batch: queries per batch.
        batch_tokens: tokens per batch.
        queue: queries waiting.
        queue_chars: characters of the queries waiting; a single request may have more.
    """

    batch: int
    batch_tokens: int
    queue: int
    queue_chars: int

    @property
    def small(self) -> int:
        """Queries of a small request."""
        return self.queue // 64

    @property
    def small_chars(self) -> int:
        """Characters of a small request."""
        return self.queue_chars // 64

    @property
    def reserve(self) -> int:
        """Further queries that may wait if they are of small requests."""
        return 8 * self.small


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch to work on, and the queries skipped because no caller seemed to wait for them."""

    batch: list[PendingQuery]
    abandoned: list[PendingQuery]


class BatchQueue:
    """Two queues: work waiting to be tokenized, and work waiting to be encoded. Every method is thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting = FairQueue()
        self._tokenizing: set[PendingQuery] = set()
        self._tokenized = FairQueue()
        self._chars = 0
        self._lock = threading.Lock()
        self._arrived, self._encodable = threading.Condition(self._lock), threading.Condition(self._lock)
        self._closed = False

    @property
    def depth(self) -> int:
        """Pending queries that are not being encoded yet."""
        with self._lock:
            return len(self._waiting) + len(self._tokenizing) + len(self._tokenized)

    @property
    def chars(self) -> int:
        """Their characters."""
        with self._lock:
            return self._chars

    @property
    def tokenized(self) -> int:
        """Pending queries that are tokenized and wait for the encoder."""
        with self._lock:
            return len(self._tokenized)

    def add(self, pending: list[PendingQuery]) -> None:
        """Queue work."""
        with self._lock:
            self._waiting.add(pending)
            self._count(pending, 1)
            self._arrived.notify()

    def join(self, pending: Iterable[PendingQuery], request: int) -> None:
        """One more request waits for queries in flight: those that wait here come in its turn, too."""
        with self._lock:
            for query in pending:
                query.requests.append(request)
                for held in (self._waiting, self._tokenized):
                    if query in held:
                        held.join(query, request)

    def take_waiting(self) -> Batch | None:
        """Wait for work to tokenize and take at most one batch of it; None after `close`."""
        with self._lock:
            self._arrived.wait_for(lambda: self._closed or len(self._waiting))
            if self._closed:
                return None
            batch, abandoned = _parted(
                [self._waiting.take() for _ in range(self._limits.batch) if self._waiting.first()]
            )
            self._tokenizing = set(batch)
            self._count(abandoned, -1)
            return Batch(batch, abandoned)

    def put_tokenized(self, pending: list[PendingQuery]) -> None:
        """Pass on what `take_waiting` returned last, or an empty list if tokenizing it failed."""
        with self._lock:
            self._count(self._tokenizing.difference(pending), -1)
            self._tokenizing = set()
            self._tokenized.add(pending)
            self._encodable.notify()

    def take_tokenized(self) -> Batch | None:
        """Wait for work to encode and take a batch within the limits; None after `close`."""
        with self._lock:
            self._encodable.wait_for(lambda: self._closed or len(self._tokenized))
            return None if self._closed else self._take_batch()

    def sweep(self) -> list[PendingQuery]:
        """Remove and return all abandoned work."""
        with self._lock:
            gone = self._waiting.sweep() + self._tokenized.sweep()
            self._count(gone, -1)
            return gone

    def clear(self) -> None:
        """Forget all work."""
        with self._lock:
            self._waiting.clear()
            self._tokenized.clear()
            self._tokenizing = set()
            self._chars = 0

    def close(self) -> None:
        """Release the threads that wait for work."""
        with self._lock:
            self._closed = True
            self._arrived.notify_all()
            self._encodable.notify_all()

    def _take_batch(self) -> Batch:
        batch: list[PendingQuery] = []
        abandoned: list[PendingQuery] = []
        tokens = 0
        while len(batch) < self._limits.batch and (pending := self._tokenized.first()) is not None:
            if pending.abandoned:
                abandoned.append(self._tokenized.take())
                continue
            tokens += len(pending.ids)
            if batch and tokens > self._limits.batch_tokens:
                break
            batch.append(self._tokenized.take())
        self._count([*batch, *abandoned], -1)
        return Batch(batch, abandoned)

    def _count(self, pending: Iterable[PendingQuery], sign: int) -> None:
        self._chars = max(0, self._chars + sign * sum(len(query.query.text) for query in pending))


def _parted(pending: list[PendingQuery]) -> tuple[list[PendingQuery], list[PendingQuery]]:
    kept: list[PendingQuery] = []
    gone: list[PendingQuery] = []
    for query in pending:
        (gone if query.abandoned else kept).append(query)
    return kept, gone
