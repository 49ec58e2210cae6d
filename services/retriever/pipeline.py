"""From many small requests to few large calls: queries wait, are tokenised, encoded and searched.

    handlers → waiting → [tokenise] → tokenised → [encode] → encoded → [search] → handlers

Each stage in brackets has a thread of its own: a batch is encoded while the one before it is searched, and nothing
blocks the event loop. Dispatch is greedy: whenever the encoder is idle it gets all that is tokenised, up to its limits.
Under light load that is one query at once, under heavy load full batches; there is no window to tune.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from research.errors import ServiceBusyError
from services.retriever.cache import ResultCache
from services.retriever.ledger import Ledger, Work
from services.retriever.search import Answer, Hits, Query, QueryEncoder, Vectors

_logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the pipeline takes: `batch` queries and `batch_tokens` tokens encoded together, `queue` queries waiting."""

    batch: int
    batch_tokens: int
    queue: int


@dataclass(frozen=True, slots=True)
class BatchReport:
    """For the metrics: what became of a batch.

    Attributes:
        answers: as they were given, one for each who waited.
        queries: pieces of work in the batch.
        merged: answers beyond one for a piece of work.
        dropped: pieces of work left out, because nobody waited for them any more.
    """

    answers: list[Answer]
    queries: int = 0
    merged: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class _Encoded:
    batch: list[Work]
    vectors: Vectors
    begun: float
    seconds: float


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
        self._encoder = encoder
        self._cache = cache
        self._limits = limits
        self._observe = observe
        self._ledger = Ledger(merge=merge)
        self._waiting: deque[Work] = deque()
        self._tokenising = 0
        self._tokenised: deque[Work] = deque()
        self._encoded: asyncio.Queue[_Encoded] = asyncio.Queue(maxsize=1)
        self._arrived, self._encodable = asyncio.Event(), asyncio.Event()
        self._closing = False
        self._somebody_left = False
        self._stages: list[asyncio.Task[None]] = []
        self._threads: list[ThreadPoolExecutor] = []
        self._seconds_per_query = 0.0

    @property
    def depth(self) -> int:
        """Distinct queries that are not being encoded yet."""
        return len(self._waiting) + self._tokenising + len(self._tokenised)

    @property
    def expected_wait(self) -> float:
        """Seconds until what waits now will be done, from the pace of the latest batches."""
        return self.depth * self._seconds_per_query

    def start(self) -> None:
        """Begin to work."""
        for stage in (self._tokenise, self._encode, self._search):
            name = stage.__name__.strip("_")
            thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
            self._threads.append(thread)
            self._stages.append(asyncio.create_task(self._keep_running(stage, thread), name=name))

    async def close(self) -> None:
        """Take no more queries, finish those under way, end the threads."""
        self._closing = True
        await self._ledger.all_done()
        for stage in self._stages:
            stage.cancel()
        await asyncio.gather(*self._stages, return_exceptions=True)
        for thread in self._threads:
            thread.shutdown()

    async def submit(self, queries: Sequence[Query]) -> list[Answer]:
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
        return [next(found) if hits is None else Answer(hits) for hits in cached]

    async def _work_on(self, queries: list[Query]) -> list[Answer]:
        self._admit(queries)
        new, waiters = self._ledger.enter(queries, time.perf_counter())
        self._waiting.extend(new)
        self._arrived.set()
        try:
            return await asyncio.gather(*waiters)
        except asyncio.CancelledError:
            self._somebody_left = True
            raise
        finally:
            for waiter in waiters:
                waiter.cancel()

    def _admit(self, queries: list[Query]) -> None:
        # To look through the queue takes as long as the queue is: only when there may be something to find.
        if self.depth + len(queries) > self._limits.queue and self._somebody_left:
            self._somebody_left = False
            self._waiting = self._without_abandoned(self._waiting)
            self._tokenised = self._without_abandoned(self._tokenised)
        if self.depth + self._ledger.count_new(queries) > self._limits.queue:
            raise ServiceBusyError(f"{self.depth} queries wait already and {self._limits.queue} may; try again later")

    def _without_abandoned(self, queue: deque[Work]) -> deque[Work]:
        kept, gone = deque[Work](), list[Work]()
        for work in queue:
            (gone if work.abandoned else kept).append(work)
        self._drop(gone)
        return kept

    def _drop(self, abandoned: list[Work]) -> None:
        for work in abandoned:
            self._ledger.drop(work)
        if abandoned:
            self._report(BatchReport([], dropped=len(abandoned)))

    async def _keep_running(
        self, stage: Callable[[ThreadPoolExecutor], Coroutine[None, None, None]], thread: ThreadPoolExecutor
    ) -> None:
        """A stage that ended would leave everyone waiting for ever; a bug in it costs what was under way, no more."""
        while True:
            try:
                await stage(thread)
            except Exception as bug:
                _logger.exception("a stage broke; it goes on with what comes next")
                self._waiting.clear()
                self._tokenised.clear()
                self._tokenising = 0
                self._ledger.fail_all("the search failed: a bug; the log of the retriever says where", bug)

    def _report(self, report: BatchReport) -> None:
        try:
            self._observe(report)
        except Exception:
            _logger.exception("a batch could not be reported")

    async def _tokenise(self, thread: ThreadPoolExecutor) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                # No more than the encoder takes at once: it should not wait for the end of the queue.
                taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._limits.batch))]
                self._drop([work for work in taken if work.abandoned])
                batch = [work for work in taken if not work.abandoned]
                if not batch:
                    continue
                self._tokenising = len(batch)
                texts = [work.query.text for work in batch]
                rows = await self._in(thread, batch, self._encoder.tokenise, texts)
                self._tokenising = 0
                for work, ids in zip(batch, rows or (), strict=rows is not None):
                    work.ids = ids
                    self._tokenised.append(work)
                self._encodable.set()

    async def _encode(self, thread: ThreadPoolExecutor) -> None:
        while True:
            await self._encodable.wait()
            self._encodable.clear()
            while batch := self._take():
                begun = time.perf_counter()
                vectors = await self._in(thread, batch, self._encoder.encode, [work.ids for work in batch])
                if vectors is not None:
                    await self._encoded.put(_Encoded(batch, vectors, begun, time.perf_counter() - begun))

    def _take(self) -> list[Work]:
        """Take a batch within the limits; what nobody waits for any more is left out."""
        batch: list[Work] = []
        abandoned: list[Work] = []
        tokens = 0
        while self._tokenised and len(batch) < self._limits.batch:
            work = self._tokenised[0]
            if work.abandoned:
                abandoned.append(self._tokenised.popleft())
                continue
            tokens += len(work.ids)
            if batch and tokens > self._limits.batch_tokens:
                break
            batch.append(self._tokenised.popleft())
        self._drop(abandoned)
        return batch

    async def _search(self, thread: ThreadPoolExecutor) -> None:
        while True:
            encoded = await self._encoded.get()
            batch, begun = encoded.batch, time.perf_counter()
            hits = await self._in(thread, batch, _search_batch, encoded)
            seconds = time.perf_counter() - begun
            if hits is None:
                continue
            self._note_pace(max(encoded.seconds, seconds) / len(batch))
            self._answer(encoded, hits, seconds)

    def _answer(self, encoded: _Encoded, hits: list[Hits | Exception], seconds: float) -> None:
        answers: list[Answer] = []
        merged = 0
        for work, own in zip(encoded.batch, hits, strict=True):
            if isinstance(own, Exception):
                self._ledger.fail(work, f"the search failed: {own!r}", own)
                continue
            answer = Answer(own, encoded.begun - work.since, encoded.seconds, seconds)
            self._cache.put(work.query.key, own)
            given = self._ledger.answer(work, answer)
            answers += [answer] * given
            merged += max(0, given - 1)
        self._report(BatchReport(answers, len(encoded.batch), merged))

    async def _in(
        self, thread: ThreadPoolExecutor, batch: list[Work], call: Callable[..., T], argument: object
    ) -> T | None:
        """The result of `call(argument)` in a stage's thread, or None after telling those who wait that it failed."""
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, call, argument)
        except Exception as cause:
            _logger.exception("a batch of %d queries failed", len(batch))
            for work in batch:
                self._ledger.fail(work, f"the search failed: {cause!r}", cause)
            return None

    def _note_pace(self, seconds_per_query: float) -> None:
        before = self._seconds_per_query or seconds_per_query
        self._seconds_per_query = 0.8 * before + 0.2 * seconds_per_query


def _search_batch(encoded: _Encoded) -> list[Hits | Exception]:
    """One call for each index and depth that the batch asks; an index that fails fails its own queries only."""
    found: dict[int, Hits | Exception] = {}
    groups: dict[tuple[str, int], list[int]] = {}
    for row, work in enumerate(encoded.batch):
        groups.setdefault((work.query.target.key, work.query.top_k), []).append(row)
    for rows in groups.values():
        queries = [encoded.batch[row].query for row in rows]
        target, top_k = queries[0].target, queries[0].top_k
        try:
            hits = target.search([query.text for query in queries], encoded.vectors[rows], top_k)
        except Exception as error:
            _logger.exception("a search in %s failed", target.key)
            found.update(dict.fromkeys(rows, error))
        else:
            found.update(zip(rows, hits, strict=True))
    return [found[row] for row in range(len(encoded.batch))]
