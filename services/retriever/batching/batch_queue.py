"""Work on its way to the encoder, shared by the event loop and the threads of the stages."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from services.retriever.batching.in_flight import PendingQuery


@dataclass(frozen=True, slots=True)
class Limits:
    """What the pipeline takes: `batch` queries and `batch_tokens` tokens encoded together, `queue` queries waiting."""

    batch: int
    batch_tokens: int
    queue: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch to work on, and what was left out because nobody seemed to wait for it."""

    batch: list[PendingQuery]
    abandoned: list[PendingQuery]


class BatchQueue:
    """Two queues: work that waits to be tokenised, and work that waits to be encoded. Every method is thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[PendingQuery] = deque()
        self._tokenising = 0
        self._tokenised: deque[PendingQuery] = deque()
        self._lock = threading.Lock()
        self._arrived, self._encodable = threading.Condition(self._lock), threading.Condition(self._lock)
        self._closed = False

    @property
    def depth(self) -> int:
        """Pieces of work that are not being encoded yet."""
        with self._lock:
            return len(self._waiting) + self._tokenising + len(self._tokenised)

    @property
    def tokenized(self) -> int:
        """Pieces of work that only the encoder has to take."""
        with self._lock:
            return len(self._tokenised)

    def add(self, works: list[PendingQuery]) -> None:
        """Let work wait."""
        with self._lock:
            self._waiting.extend(works)
            self._arrived.notify()

    def take_waiting(self) -> Batch | None:
        """Wait for work that is to be tokenised; no more than the encoder takes at once, or None after `close`."""
        with self._lock:
            self._arrived.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._limits.batch))]
            batch, abandoned = _parted(taken)
            self._tokenising = len(batch)
            return Batch(batch, abandoned)

    def put_tokenized(self, works: list[PendingQuery]) -> None:
        """Pass on what `take_waiting` gave last; nothing if it could not be tokenised."""
        with self._lock:
            self._tokenising = 0
            self._tokenised.extend(works)
            self._encodable.notify()

    def take_tokenized(self) -> Batch | None:
        """Wait for work that is to be encoded and take a batch within the limits, or None after `close`."""
        with self._lock:
            self._encodable.wait_for(lambda: self._closed or self._tokenised)
            return None if self._closed else self._take_batch()

    def sweep(self) -> list[PendingQuery]:
        """Take out everything that nobody waits for."""
        with self._lock:
            (waiting, gone), (tokenized, gone_later) = _parted(self._waiting), _parted(self._tokenised)
            self._waiting, self._tokenised = deque(waiting), deque(tokenized)
            return gone + gone_later

    def clear(self) -> None:
        """Forget all work."""
        with self._lock:
            self._waiting.clear()
            self._tokenised.clear()
            self._tokenising = 0

    def close(self) -> None:
        """Let those who wait for work go."""
        with self._lock:
            self._closed = True
            self._arrived.notify_all()
            self._encodable.notify_all()

    def _take_batch(self) -> Batch:
        batch: list[PendingQuery] = []
        abandoned: list[PendingQuery] = []
        tokens = 0
        while self._tokenised and len(batch) < self._limits.batch:
            pending = self._tokenised[0]
            if pending.abandoned:
                abandoned.append(self._tokenised.popleft())
                continue
            tokens += len(pending.ids)
            if batch and tokens > self._limits.batch_tokens:
                break
            batch.append(self._tokenised.popleft())
        return Batch(batch, abandoned)


def _parted(works: deque[PendingQuery] | list[PendingQuery]) -> tuple[list[PendingQuery], list[PendingQuery]]:
    kept: list[PendingQuery] = []
    gone: list[PendingQuery] = []
    for pending in works:
        (gone if pending.abandoned else kept).append(pending)
    return kept, gone
