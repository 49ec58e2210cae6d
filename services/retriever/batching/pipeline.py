"""From many small requests to few large calls: queries wait, are tokenised, encoded and searched.

    handlers → waiting → [tokenise] → tokenised → [encode] → [search] → handlers

Each stage in brackets has a thread of its own (`Stages`); the event loop admits, answers and computes nothing. Dispatch
is greedy: whenever the encoder is idle it gets all that is tokenised, up to its limits. Under light load that is one
query at once, under heavy load full batches; there is no window to tune.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from research.errors import ServiceBusyError
from services.retriever.batching.batch_queue import BatchQueue, Limits
from services.retriever.batching.in_flight import InFlight, PendingQuery
from services.retriever.batching.result_cache import ResultCache
from services.retriever.batching.stages import Encoded, Stages
from services.retriever.types import HitDicts, Query, QueryEncoder, QueryResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """For the metrics: what became of a batch.

    Attributes:
        answers: as they were given, one for each who waited.
        queries: pieces of work in the batch.
        merged: answers beyond one for a piece of work.
        dropped: pieces of work left out, because nobody waited for them any more.
    """

    answers: list[QueryResult]
    queries: int = 0
    merged: int = 0
    dropped: int = 0


class SearchPipeline:
    """Queues queries and answers them in batches; for one event loop, between `start` and `close`.

    Args:
        encoder: its two methods run in one thread each.
        cache: answers of former queries.
        limits: of the batches and of the queue.
        merge: whether equal queries that are under way share one place.
        observe: called in the event loop after each batch.
    """

    def __init__(
        self,
        encoder: QueryEncoder,
        cache: ResultCache,
        limits: Limits,
        *,
        merge: bool,
        observe: Callable[[BatchReport], None],
    ) -> None:
        self._cache = cache
        self._most_waiting = limits.queue
        self._observe = observe
        self._in_flight = InFlight(merge=merge)
        self._batch_queue = BatchQueue(limits)
        self._encoder = encoder
        self._stages: Stages | None = None
        self._closing = False
        self._somebody_left = False
        self._recent_seconds = self._recent_queries = 0.0

    @property
    def depth(self) -> int:
        """Distinct queries that are not being encoded yet."""
        return self._batch_queue.depth

    @property
    def is_full(self) -> bool:
        """Whether no new query can be admitted, as far as can be told without looking at one."""
        return self.depth >= self._most_waiting and not self._somebody_left

    @property
    def expected_wait(self) -> float:
        """Seconds until what waits now will be done, from the pace of the latest batches."""
        return self.depth * self._recent_seconds / self._recent_queries if self._recent_queries else 0.0

    def start(self) -> None:
        """Begin to work."""
        loop = asyncio.get_running_loop()
        self._stages = Stages(self._batch_queue, self._encoder, _LoopThreadsafe(loop, self))
        self._stages.start()

    async def close(self) -> None:
        """Take no more queries, finish those under way, end the threads."""
        self._closing = True
        await self._in_flight.all_done()
        if self._stages is not None:
            await asyncio.to_thread(self._stages.close)

    async def submit(self, queries: Sequence[Query]) -> list[QueryResult]:
        """Answer the queries of one request, in order; all are admitted or none.

        Cancelling the call withdraws those that nobody else waits for and that are not being encoded yet.

        Raises:
            ServiceBusyError: the queue has no room for them, or the service is shutting down.
            ServiceError: a stage failed on their batch; the cause is what it raised.
        """
        if self._closing:
            raise ServiceBusyError("the service is shutting down")
        cached = [self._cache.get(query.key) for query in queries]
        missing = [query for query, hits in zip(queries, cached, strict=True) if hits is None]
        found = iter(await self._work_on(missing)) if missing else iter(())
        return [next(found) if hits is None else QueryResult(hits) for hits in cached]

    async def _work_on(self, queries: list[Query]) -> list[QueryResult]:
        self._admit(queries)
        new, waiters = self._in_flight.register(queries, time.perf_counter())
        self._batch_queue.add(new)
        try:
            return await asyncio.gather(*waiters)
        except BaseException:
            # The client left, or one of its queries failed: nobody waits for the others.
            self._somebody_left = True
            raise
        finally:
            for waiter in waiters:
                waiter.cancel()

    def _admit(self, queries: list[Query]) -> None:
        # To look through the queue takes as long as the queue is: only when there may be something to find.
        if self.depth + len(queries) > self._most_waiting and self._somebody_left:
            self._somebody_left = False
            self.on_abandoned(self._batch_queue.sweep())
        if self.depth + self._in_flight.new_count(queries) > self._most_waiting:
            raise ServiceBusyError(f"{self.depth} queries wait already and {self._most_waiting} may; try again later")

    def on_results(self, encoded: Encoded, hits: list[HitDicts | Exception], seconds: float) -> None:
        """Give everyone who waits for a batch the hits, or the error of their index; keep and report them."""
        answers: list[QueryResult] = []
        merged = 0
        for pending, own in zip(encoded.batch, hits, strict=True):
            if isinstance(own, Exception):
                self._in_flight.fail(pending, f"the search failed: {own!r}", own)
                continue
            result = QueryResult(own, encoded.begun - pending.since, encoded.seconds, seconds)
            self._cache.put(pending.query.key, own)
            given = self._in_flight.resolve(pending, result)
            answers += [result] * given
            merged += max(0, given - 1)
        self._note_pace(max(encoded.seconds, seconds), len(encoded.batch))
        self._report(BatchReport(answers, len(encoded.batch), merged))

    def on_failure(self, batch: list[PendingQuery], cause: Exception) -> None:
        """Tell everyone who waits for a batch that it failed."""
        for pending in batch:
            self._in_flight.fail(pending, f"the search failed: {cause!r}", cause)

    def on_abandoned(self, pending: list[PendingQuery]) -> None:
        """Forget work that nobody waits for; what somebody has joined since it was left out waits again."""
        gone = [query for query in pending if query.abandoned]
        for query in gone:
            self._in_flight.discard(query)
        if joined := [query for query in pending if not query.abandoned]:
            self._batch_queue.add(joined)
        if gone:
            self._report(BatchReport([], dropped=len(gone)))

    def on_crash(self, bug: Exception) -> None:
        """Tell everyone who waits for anything that a stage broke."""
        self._batch_queue.clear()
        self._in_flight.fail_all("the search failed: a bug; the log of the retriever says where", bug)

    def _report(self, report: BatchReport) -> None:
        try:
            self._observe(report)
        except Exception:
            logger.exception("a batch could not be reported")

    def _note_pace(self, seconds: float, queries: int) -> None:
        # Summed before they are divided: single queries are dear, and would outweigh a full batch.
        self._recent_seconds = 0.8 * self._recent_seconds + seconds
        self._recent_queries = 0.8 * self._recent_queries + queries


class _LoopThreadsafe:
    """Takes what the stages tell to the event loop, to which everybody who waits belongs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipeline: SearchPipeline) -> None:
        self._loop = loop
        self._pipeline = pipeline

    def on_results(self, encoded: Encoded, hits: list[HitDicts | Exception], seconds: float) -> None:
        self._post(lambda: self._pipeline.on_results(encoded, hits, seconds))

    def on_failure(self, batch: list[PendingQuery], cause: Exception) -> None:
        self._post(lambda: self._pipeline.on_failure(batch, cause))

    def on_abandoned(self, pending: list[PendingQuery]) -> None:
        self._post(lambda: self._pipeline.on_abandoned(pending))

    def on_crash(self, bug: Exception) -> None:
        self._post(lambda: self._pipeline.on_crash(bug))

    def _post(self, what: Callable[[], None]) -> None:
        def safely() -> None:
            try:
                what()
            except Exception as bug:
                logger.exception("what a stage told could not be dealt with; all that is under way fails")
                self._pipeline.on_crash(bug)

        # A forced end closes the loop while the threads still work; then nobody waits any longer.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(safely)
