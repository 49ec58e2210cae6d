"""Micro-batching: many requests, one thread that encodes and searches, nothing blocking in the event loop.

    handlers → bounded queue → one dispatch task → worker thread

Dispatch is greedy: whenever the worker is idle it gets all that waits, up to `max_batch` different texts.
Under light load that is one query at once, under heavy load full batches; there is no window to tune.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from research.errors import ServiceBusyError, ServiceError

Hit = dict[str, str | float]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Query:
    """A text to search for, and how many passages are wanted."""

    text: str
    top_k: int


@dataclass(frozen=True, slots=True)
class SearchedBatch:
    """What the worker brings back: `hits[i]` of the i-th query, best first; seconds for the whole batch."""

    hits: list[list[Hit]]
    encode_seconds: float
    search_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The hits of one query and the seconds that it spent waiting, encoded and searched with its batch."""

    hits: list[Hit]
    queue_seconds: float
    encode_seconds: float
    search_seconds: float


@dataclass(frozen=True, slots=True)
class BatchReport:
    """For the metrics: the answers of a batch of so many texts, and how many queries were dropped before it."""

    answers: list[Answer]
    texts: int
    dropped: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    query: Query
    answer: asyncio.Future[Answer]
    since: float


class MicroBatcher:
    """Queues queries and feeds them to `search` in batches; for one event loop, between `start` and `close`.

    Args:
        search: encodes and searches distinct texts; runs in the batcher's only thread.
        max_batch: distinct texts a batch at most.
        max_queue: queries that may wait.
        observe: called in the event loop after each batch.
    """

    def __init__(
        self,
        search: Callable[[list[Query]], SearchedBatch],
        *,
        max_batch: int,
        max_queue: int,
        observe: Callable[[BatchReport], None],
    ) -> None:
        self._search = search
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._arrival = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")
        self._dispatcher: asyncio.Task[None] | None = None
        self._seconds_per_query = 0.0

    @property
    def depth(self) -> int:
        """Queries that wait for their batch."""
        return len(self._waiting)

    @property
    def expected_wait(self) -> float:
        """Seconds until what waits now will be done, from the pace of the latest batches."""
        return self.depth * self._seconds_per_query

    def start(self) -> None:
        """Begin to dispatch."""
        self._dispatcher = asyncio.create_task(self._dispatch(), name="dispatch")

    async def close(self) -> None:
        """Take no more queries, finish those that wait, end the thread."""
        self._closing = True
        self._arrival.set()
        if self._dispatcher is not None:
            await self._dispatcher
        self._thread.shutdown()

    async def submit(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer the queries of one request, in order; all are admitted or none.

        Cancelling the call withdraws those that still wait.

        Raises:
            ServiceBusyError: the queue has no room for them, or the service is shutting down.
            ServiceError: `search` failed on their batch; the cause is what it raised.
        """
        self._admit(len(queries))
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        waiting = [_Waiting(query, loop.create_future(), now) for query in queries]
        self._waiting.extend(waiting)
        self._arrival.set()
        try:
            return await asyncio.gather(*(item.answer for item in waiting))
        finally:
            for item in waiting:
                item.answer.cancel()

    def _admit(self, count: int) -> None:
        if self._closing:
            raise ServiceBusyError("the service is shutting down")
        if self.depth + count > self._max_queue:
            self._waiting = deque(item for item in self._waiting if not item.answer.done())
        if self.depth + count > self._max_queue:
            raise ServiceBusyError(f"{self.depth} queries wait already and {self._max_queue} may; try again later")

    async def _dispatch(self) -> None:
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            while self._waiting:
                await self._run(*self._take())
            if self._closing:
                return

    def _take(self) -> tuple[dict[str, list[_Waiting]], int]:
        """Take a batch, same texts together, and count those left out because nobody waits for them now."""
        batch: dict[str, list[_Waiting]] = {}
        dropped = 0
        while self._waiting and (len(batch) < self._max_batch or self._waiting[0].query.text in batch):
            item = self._waiting.popleft()
            if item.answer.done():
                dropped += 1
            else:
                batch.setdefault(item.query.text, []).append(item)
        return batch, dropped

    async def _run(self, batch: dict[str, list[_Waiting]], dropped: int) -> None:
        answers: list[Answer] = []
        try:
            if batch:
                answers = await self._answer(batch)
        except Exception as cause:
            _logger.exception("a batch of %d texts failed", len(batch))
            for item in (item for items in batch.values() for item in items if not item.answer.done()):
                error = ServiceError(f"the search failed: {cause!r}")
                error.__cause__ = cause
                item.answer.set_exception(error)
        self._observe(BatchReport(answers, len(batch), dropped))

    async def _answer(self, batch: dict[str, list[_Waiting]]) -> list[Answer]:
        queries = [Query(text, max(item.query.top_k for item in items)) for text, items in batch.items()]
        begun = time.perf_counter()
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._search, queries)
        answers = []
        for items, hits in zip(batch.values(), found.hits, strict=True):
            for item in items:
                own = hits[: item.query.top_k]
                answer = Answer(own, begun - item.since, found.encode_seconds, found.search_seconds)
                answers.append(answer)
                if not item.answer.done():
                    item.answer.set_result(answer)
        self._note_pace((time.perf_counter() - begun) / len(answers))
        return answers

    def _note_pace(self, seconds_per_query: float) -> None:
        before = self._seconds_per_query or seconds_per_query
        self._seconds_per_query = 0.8 * before + 0.2 * seconds_per_query
