"""Work on its way to the encoder, shared by the event loop and the threads of the stages."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from services.retriever.batching.in_flight import PendingQuery


@dataclass(frozen=True, slots=True)
class Limits:
    """What the pipeline accepts: `batch` queries and `batch_tokens` tokens per batch, `queue` queries waiting."""

    batch: int
    batch_tokens: int
    queue: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch to work on, and the queries skipped because no caller seemed to wait for them."""

    batch: list[PendingQuery]
    abandoned: list[PendingQuery]


class BatchQueue:
    """Two queues: work waiting to be tokenized, and work waiting to be encoded. Every method is thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[PendingQuery] = deque()
        self._tokenizing = 0
        self._tokenized: deque[PendingQuery] = deque()
        self._lock = threading.Lock()
        self._arrived, self._encodable = threading.Condition(self._lock), threading.Condition(self._lock)
        self._closed = False

    @property
    def depth(self) -> int:
        """Pending queries that are not being encoded yet."""
        with self._lock:
            return len(self._waiting) + self._tokenizing + len(self._tokenized)

    @property
    def tokenized(self) -> int:
        """Pending queries that are tokenized and wait for the encoder."""
        with self._lock:
            return len(self._tokenized)

    def add(self, pending: list[PendingQuery]) -> None:
        """Queue work."""
        with self._lock:
            self._waiting.extend(pending)
            self._arrived.notify()

    def take_waiting(self) -> Batch | None:
        """Wait for work to tokenize and take at most one batch of it; None after `close`."""
        with self._lock:
            self._arrived.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._limits.batch))]
            batch, abandoned = _parted(taken)
            self._tokenizing = len(batch)
            return Batch(batch, abandoned)

    def put_tokenized(self, pending: list[PendingQuery]) -> None:
        """Pass on what `take_waiting` returned last, or an empty list if tokenizing it failed."""
        with self._lock:
            self._tokenizing = 0
            self._tokenized.extend(pending)
            self._encodable.notify()

    def take_tokenized(self) -> Batch | None:
        """Wait for work to encode and take a batch within the limits; None after `close`."""
        with self._lock:
            self._encodable.wait_for(lambda: self._closed or self._tokenized)
            return None if self._closed else self._take_batch()

    def sweep(self) -> list[PendingQuery]:
        """Remove and return all abandoned work."""
        with self._lock:
            (waiting, gone), (tokenized, gone_later) = _parted(self._waiting), _parted(self._tokenized)
            self._waiting, self._tokenized = deque(waiting), deque(tokenized)
            return gone + gone_later

    def clear(self) -> None:
        """Forget all work."""
        with self._lock:
            self._waiting.clear()
            self._tokenized.clear()
            self._tokenizing = 0

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
        while self._tokenized and len(batch) < self._limits.batch:
            pending = self._tokenized[0]
            if pending.abandoned:
                abandoned.append(self._tokenized.popleft())
                continue
            tokens += len(pending.ids)
            if batch and tokens > self._limits.batch_tokens:
                break
            batch.append(self._tokenized.popleft())
        return Batch(batch, abandoned)


def _parted(pending: deque[PendingQuery] | list[PendingQuery]) -> tuple[list[PendingQuery], list[PendingQuery]]:
    kept: list[PendingQuery] = []
    gone: list[PendingQuery] = []
    for query in pending:
        (gone if query.abandoned else kept).append(query)
    return kept, gone
