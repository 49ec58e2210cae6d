"""From many small requests to few large calls: queries wait, are tokenized, encoded and searched.

    handlers → waiting → [tokenize] → tokenized → [encode] → [search] → handlers

Each stage in brackets has its own thread (`Stages`); the event loop admits and answers, but computes nothing. Dispatch
is greedy: whenever the encoder is idle it takes all tokenized queries, up to its limits. Under light load that is one
query at a time, under heavy load full batches; there is no window to tune. Requests take turns, a query each, so a
large one does not hold up the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
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

# Together with the time that the server waits for its requests, less than `stopping.GRACE_SECONDS`.
_CLOSE_SECONDS = 2.0
_WATCH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The outcome of a batch, for the metrics.

    Attributes:
        answers: as delivered, one per caller that waited.
        queries: pending queries in the batch.
        merged: answers beyond one per pending query.
        dropped: pending queries skipped because no caller waited for them any longer.
    """

    answers: list[QueryResult]
    queries: int = 0
    merged: int = 0
    dropped: int = 0


class SearchPipeline:
    """Queues queries and answers them in batches; for one event loop, between `start` and `close`.

    Args:
        encoder: its two methods run in one thread each.
        cache: answers to earlier queries.
        limits: of the batches and of the queue.
        merge: whether equal queries in flight are coalesced.
        max_wait: seconds until a request is given up.
        observe: called in the event loop after each batch.
    """

    def __init__(
        self,
        encoder: QueryEncoder,
        cache: ResultCache,
        limits: Limits,
        *,
        merge: bool,
        max_wait: float,
        observe: Callable[[BatchReport], None],
    ) -> None:
        self._cache = cache
        self._limits = limits
        self._max_wait = max_wait
        self._observe = observe
        self._in_flight = InFlight(merge=merge)
        self._batch_queue = BatchQueue(limits)
        self._encoder = encoder
        self._stages: Stages | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closing = False
        self._client_left = False
        self._recent_seconds = self._recent_queries = 0.0

    @property
    def depth(self) -> int:
        """Distinct queries that are not being encoded yet."""
        return self._batch_queue.depth

    @property
    def is_full(self) -> bool:
        """Whether no new query can be admitted, judged without looking at one."""
        return self.depth >= self._limits.queue + self._limits.reserve and not self._client_left

    @property
    def expected_wait(self) -> float:
        """Seconds until the queries waiting now are done, at the pace of the latest batches."""
        return self.depth * self._recent_seconds / self._recent_queries if self._recent_queries else 0.0

    def start(self) -> None:
        """Start the threads."""
        loop = asyncio.get_running_loop()
        self._stages = Stages(self._batch_queue, self._encoder, _LoopThreadsafe(loop, self))
        self._stages.start()
        self._watching = asyncio.create_task(self._watch(), name="watch")

    @property
    def stuck(self) -> str | None:
        """Which stages hang, or None."""
        return self._stages.watch.stuck if self._stages is not None else None

    async def close(self) -> None:
        """Refuse new queries, finish those in flight, end the threads; what hangs is given up."""
        self._closing = True
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._in_flight.all_done()
        except TimeoutError:
            logger.error("queries were still in flight after %.0f s; they are given up", _CLOSE_SECONDS)
            self._give_up("the search did not end before the retriever did")
        if self._watching is not None:
            self._watching.cancel()
        if self._stages is not None:
            await asyncio.to_thread(self._stages.close, _CLOSE_SECONDS / 2)

    async def submit(self, queries: Sequence[Query]) -> list[QueryResult]:
        """Answer the queries of one request, in order; all are admitted or none.

        Canceling the call withdraws the queries that no other caller waits for and that are not being encoded yet.

        Raises:
            ServiceBusyError: the queue has no room for them, they took too long, or the service is shutting down.
            ServiceError: a stage failed on their batch; the cause is the stage's exception.
        """
        if self._closing:
            raise ServiceBusyError("the service is shutting down", reason="shutting_down")
        cached = [self._cache.get(query.key) for query in queries]
        missing = [query for query, hits in zip(queries, cached, strict=True) if hits is None]
        found = iter(await self._work_on(missing)) if missing else iter(())
        return [next(found) if hits is None else QueryResult(hits) for hits in cached]

    async def _work_on(self, queries: list[Query]) -> list[QueryResult]:
        self._admit(queries)
        request = self._in_flight.register(queries, time.perf_counter())
        self._batch_queue.add(request.new)
        self._batch_queue.join(request.joined, request.request)
        try:
            async with asyncio.timeout(self._max_wait):
                return await asyncio.gather(*request.waiters)
        except BaseException as error:
            # The client disconnected, waited too long, or one of its queries failed: nobody waits for the others.
            self._client_left = True
            if isinstance(error, TimeoutError):
                raise ServiceBusyError(
                    f"the search was not done within {self._max_wait:g} s; try again later",
                    reason="too_slow",
                ) from error
            raise
        finally:
            for waiter in request.waiters:
                waiter.cancel()

    def _admit(self, queries: list[Query]) -> None:
        # Sweeping takes time in proportion to the queue, so it happens only when there may be something to find.
        if self._client_left and self._is_too_much(queries):
            self._client_left = False
            self.on_abandoned(self._batch_queue.sweep())
        if self._is_too_much(self._in_flight.new(queries)):
            raise ServiceBusyError(
                f"{self.depth} queries are waiting and the limit is {self._limits.queue}, or "
                f"{self._limits.queue_chars} characters; try again later",
                reason="queue_full",
            )

    def _is_too_much(self, queries: list[Query]) -> bool:
        limits, depth = self._limits, self.depth
        chars = sum(len(query.text) for query in queries)
        # What waits for a large request must not keep small ones out, whose turn comes at once.
        if len(queries) <= limits.small and chars <= limits.small_chars:
            return depth + len(queries) > limits.queue + limits.reserve
        # Who has too many characters even alone could otherwise never be answered.
        most_chars = limits.queue_chars if depth else math.inf
        return depth + len(queries) > limits.queue or self._batch_queue.chars + chars > most_chars

    def on_results(self, encoded: Encoded, hits: list[HitDicts | Exception], seconds: float) -> None:
        """Deliver the hits of a batch, or the error of its index, to every waiting caller; cache and report them."""
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
        """Fail every query of a batch."""
        for pending in batch:
            self._in_flight.fail(pending, f"the search failed: {cause!r}", cause)

    def on_abandoned(self, pending: list[PendingQuery]) -> None:
        """Forget abandoned queries; one that a new caller has joined since it was skipped is queued again."""
        gone = [query for query in pending if query.abandoned]
        for query in gone:
            self._in_flight.discard(query)
        if joined := [query for query in pending if not query.abandoned]:
            self._batch_queue.add(joined)
        if gone:
            self._report(BatchReport([], dropped=len(gone)))

    def on_crash(self, bug: Exception) -> None:
        """Fail every query in flight because of a bug in a stage."""
        self._batch_queue.clear()
        self._in_flight.fail_all("the search failed because of a bug; see the retriever's log", bug)

    async def _watch(self) -> None:
        """Tell those who wait for a stage that hangs; it may never end."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if (stuck := self.stuck) is not None and self._in_flight:
                logger.error(stuck)
                self._give_up(stuck)

    def _give_up(self, why: str) -> None:
        self._batch_queue.clear()
        self._in_flight.fail_all(why, TimeoutError(why))

    def _report(self, report: BatchReport) -> None:
        try:
            self._observe(report)
        except Exception:
            logger.exception("a batch could not be reported")

    def _note_pace(self, seconds: float, queries: int) -> None:
        # Sums, not a mean of ratios: single queries are expensive, and would outweigh a full batch.
        self._recent_seconds = 0.8 * self._recent_seconds + seconds
        self._recent_queries = 0.8 * self._recent_queries + queries


class _LoopThreadsafe:
    """Passes the callbacks of the stages to the event loop, in which all callers wait."""

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
                logger.exception("the result of a stage could not be handled; all queries in flight fail")
                self._pipeline.on_crash(bug)

        # A forced end closes the loop while the threads still work; then no caller waits any longer.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(safely)
