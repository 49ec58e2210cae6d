"""Three worker threads: tokenize, encode, search. Each takes the next batch by itself, without the event loop.

A batch is encoded while the one before it is searched. The event loop, which may be busy with a hundred answers,
receives the results, and no stage waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.retriever.batching.batch_queue import BatchQueue
from services.retriever.batching.in_flight import PendingQuery
from services.retriever.batching.watch import StageWatch
from services.retriever.types import HitDicts, QueryEncoder, Vectors

logger = logging.getLogger(__name__)

# Lets the event loop clear the backlog, and keeps a bug that recurs in every batch from spinning.
_AFTER_A_BUG_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch with its vectors; `begun` (by `time.perf_counter`) and `seconds` are those of its encoding."""

    batch: list[PendingQuery]
    vectors: Vectors
    begun: float
    seconds: float


class PipelineCallbacks(Protocol):
    """Receives the results of the stages; called in their threads."""

    def on_results(self, encoded: Encoded, hits: list[HitDicts | Exception], seconds: float) -> None:
        """Take the hits of each query of a batch, or what its index raised."""
        ...

    def on_failure(self, batch: list[PendingQuery], cause: Exception) -> None:
        """Take a batch that could not be tokenised or encoded."""
        ...

    def on_abandoned(self, pending: list[PendingQuery]) -> None:
        """Take queries that seemed to be abandoned."""
        ...

    def on_crash(self, bug: Exception) -> None:
        """Take a bug in a stage, which continues with the next batch."""
        ...


class Stages:
    """The threads, between `start` and `close`.

    Args:
        batch_queue: where work comes from.
        encoder: its two methods run in one thread each.
        callbacks: receives the results.
    """

    def __init__(self, batch_queue: BatchQueue, encoder: QueryEncoder, callbacks: PipelineCallbacks) -> None:
        self._batch_queue = batch_queue
        self._encoder = encoder
        self._callbacks = callbacks
        self.watch = StageWatch()
        # One batch may wait here: the encoder runs ahead of a slower search by no more than that.
        self._encoded: queue.Queue[Encoded | None] = queue.Queue(maxsize=1)
        self._threads = [
            threading.Thread(target=self._run_forever, args=[step], name=step.__name__.strip("_"), daemon=True)
            for step in (self._tokenize, self._encode, self._search)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float) -> None:
        """End the threads; one that hangs is left behind after so many seconds: it ends with the process."""
        until = time.monotonic() + seconds
        self._batch_queue.close()
        with contextlib.suppress(queue.Full):
            self._encoded.put(None, timeout=seconds)
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))

    def _run_forever(self, step: Callable[[], bool]) -> None:
        """Repeat a stage: if it ended, callers would wait forever. A bug in it costs only the queries in flight."""
        goes_on = True
        while goes_on:
            try:
                goes_on = step()
            # A panic in a Rust library is not an Exception.
            except BaseException as bug:
                logger.exception("a stage crashed; it continues with the next batch")
                self._callbacks.on_crash(bug if isinstance(bug, Exception) else RuntimeError(repr(bug)))
                time.sleep(_AFTER_A_BUG_SECONDS)

    def _tokenize(self) -> bool:
        taken = self._batch_queue.take_waiting()
        if taken is None:
            return False
        self._leave_out(taken.abandoned)
        try:
            with self.watch.at_work("tokenize"):
                rows = self._encoder.tokenize([pending.query.text for pending in taken.batch])
        except Exception as cause:
            self._batch_queue.put_tokenized([])
            self._fail(taken.batch, cause)
            return True
        for pending, ids in zip(taken.batch, rows, strict=True):
            pending.ids = ids
        self._batch_queue.put_tokenized(taken.batch)
        return True

    def _encode(self) -> bool:
        taken = self._batch_queue.take_tokenized()
        if taken is None:
            return False
        self._leave_out(taken.abandoned)
        if not taken.batch:
            return True
        begun = time.perf_counter()
        try:
            with self.watch.at_work("encode"):
                vectors = self._encoder.encode([pending.ids for pending in taken.batch])
        except Exception as cause:
            self._fail(taken.batch, cause)
            return True
        self._encoded.put(Encoded(taken.batch, vectors, begun, time.perf_counter() - begun))
        return True

    def _search(self) -> bool:
        encoded = self._encoded.get()
        if encoded is None:
            return False
        begun = time.perf_counter()
        with self.watch.at_work("search"):
            hits = _search_batch(encoded)
        self._callbacks.on_results(encoded, hits, time.perf_counter() - begun)
        return True

    def _leave_out(self, abandoned: list[PendingQuery]) -> None:
        if abandoned:
            self._callbacks.on_abandoned(abandoned)

    def _fail(self, batch: list[PendingQuery], cause: Exception) -> None:
        logger.exception("a batch of %d queries failed", len(batch))
        self._callbacks.on_failure(batch, cause)


def _search_batch(encoded: Encoded) -> list[HitDicts | Exception]:
    """Make one call per index and depth in the batch; if an index fails, only its own queries fail."""
    found: dict[int, HitDicts | Exception] = {}
    groups: dict[tuple[str, int], list[int]] = {}
    for row, pending in enumerate(encoded.batch):
        groups.setdefault((pending.query.target.key, pending.query.top_k), []).append(row)
    for rows in groups.values():
        queries = [encoded.batch[row].query for row in rows]
        target, top_k = queries[0].target, queries[0].top_k
        try:
            hits = target.search([query.text for query in queries], encoded.vectors[rows], top_k)
        except Exception as error:
            logger.exception("a search in %s failed", target.key)
            found.update(dict.fromkeys(rows, error))
        else:
            found.update(zip(rows, hits, strict=True))
    return [found[row] for row in range(len(encoded.batch))]
