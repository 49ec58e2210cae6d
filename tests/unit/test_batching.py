"""The micro-batcher as a unit: a fake search stands for encoder and index."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from research.errors import ServiceBusyError, ServiceError
from services.retriever.batching import BatchReport, MicroBatcher, Query, SearchedBatch


class FakeSearch:
    """Answers `text` with hits `text#0`, `text#1`, …; holds each batch until `go` is set; breaks on "poison"."""

    def __init__(self) -> None:
        self.batches: list[list[Query]] = []
        self.go = threading.Event()
        self.entered = threading.Event()

    def __call__(self, queries: list[Query]) -> SearchedBatch:
        self.batches.append(queries)
        self.entered.set()
        assert self.go.wait(timeout=10)
        if any(query.text == "poison" for query in queries):
            raise RuntimeError("poisoned")
        hits = [[{"id": f"{query.text}#{rank}"} for rank in range(query.top_k)] for query in queries]
        return SearchedBatch(hits, encode_seconds=0.25, search_seconds=0.125)

    @property
    def texts(self) -> list[list[str]]:
        return [[query.text for query in batch] for batch in self.batches]


class Bench:
    """A started batcher over a fake search, and what it reported."""

    def __init__(self, max_batch: int = 8, max_queue: int = 16) -> None:
        self.search = FakeSearch()
        self.reports: list[BatchReport] = []
        self.batcher = MicroBatcher(self.search, max_batch=max_batch, max_queue=max_queue, observe=self.reports.append)
        self.batcher.start()

    def submit(self, *texts: str, top_k: int = 1) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self._ids([Query(text, top_k) for text in texts]))

    async def occupy(self) -> asyncio.Task[list[str]]:
        """Submit one query and return once the worker is busy with it."""
        task = self.submit("first")
        assert await asyncio.to_thread(self.search.entered.wait, 10)
        return task

    async def _ids(self, queries: list[Query]) -> list[str]:
        answers = await self.batcher.submit(queries)
        return ["+".join(str(hit["id"]) for hit in answer.hits) for answer in answers]


def with_bench(scenario: Callable[[Bench], Awaitable[None]], **limits: int) -> Bench:
    """Run a scenario on a fresh bench, then close the batcher."""

    async def main() -> Bench:
        bench = Bench(**limits)
        try:
            await asyncio.wait_for(scenario(bench), timeout=20)
        finally:
            bench.search.go.set()
            await bench.batcher.close()
        return bench

    return asyncio.run(main())


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_arrives_while_the_worker_is_busy_goes_as_one_batch() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        others = [bench.submit(text) for text in "abc"]
        await settle()
        assert bench.batcher.depth == 3
        bench.search.go.set()
        assert await asyncio.gather(first, *others) == [["first#0"], ["a#0"], ["b#0"], ["c#0"]]

    bench = with_bench(scenario)
    assert bench.search.texts == [["first"], ["a", "b", "c"]]


def test_a_batch_holds_at_most_max_batch_texts_and_requests_keep_their_order() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        five = bench.submit("a", "b", "c", "d", "e")
        await settle()
        bench.search.go.set()
        await first
        assert await five == ["a#0", "b#0", "c#0", "d#0", "e#0"]

    assert with_bench(scenario, max_batch=2).search.texts == [["first"], ["a", "b"], ["c", "d"], ["e"]]


def test_equal_texts_are_encoded_once_and_each_gets_its_own_top_k() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        tasks = [bench.submit("same", top_k=1), bench.submit("other"), bench.submit("same", top_k=3)]
        await settle()
        bench.search.go.set()
        await first
        assert await asyncio.gather(*tasks) == [["same#0"], ["other#0"], ["same#0+same#1+same#2"]]

    bench = with_bench(scenario)
    assert bench.search.batches[1] == [Query("same", 3), Query("other", 1)]
    assert (bench.reports[1].texts, len(bench.reports[1].answers)) == (2, 3)


def test_cancelled_queries_are_dropped_before_encoding() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        kept, gone = bench.submit("kept"), bench.submit("gone", "gone too")
        await settle()
        gone.cancel()
        await settle()
        bench.search.go.set()
        await first
        assert await kept == ["kept#0"]
        assert gone.cancelled()

    bench = with_bench(scenario)
    assert bench.search.texts == [["first"], ["kept"]]
    assert sum(report.dropped for report in bench.reports) == 2


def test_cancelling_during_the_search_harms_nobody() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        first.cancel()
        await settle()
        bench.search.go.set()
        assert await bench.submit("next") == ["next#0"]

    with_bench(scenario)


def test_a_full_queue_refuses_whole_requests_and_admits_again_later() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        three = bench.submit("a", "b", "c")
        await settle()
        with pytest.raises(ServiceBusyError, match="3 queries wait already and 4 may"):
            await bench.batcher.submit([Query("d", 1), Query("e", 1)])
        assert bench.batcher.depth == 3
        bench.search.go.set()
        await asyncio.gather(first, three)
        assert bench.batcher.expected_wait == 0
        assert await bench.submit("d", "e") == ["d#0", "e#0"]

    with_bench(scenario, max_queue=4)


def test_withdrawn_queries_make_room_in_a_full_queue() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.occupy()
        abandoned = bench.submit("a", "b", "c", "d")
        await settle()
        abandoned.cancel()
        await settle()
        welcome = bench.submit("e", "f")
        await settle()
        bench.search.go.set()
        assert await welcome == ["e#0", "f#0"]

    with_bench(scenario, max_queue=4)


def test_an_error_reaches_every_request_of_its_batch_and_the_worker_lives_on() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        doomed = [bench.submit("poison"), bench.submit("beside it")]
        await settle()
        bench.search.go.set()
        await first
        for error in await asyncio.gather(*doomed, return_exceptions=True):
            assert isinstance(error, ServiceError)
            assert isinstance(error.__cause__, RuntimeError)
        assert await bench.submit("healthy") == ["healthy#0"]

    with_bench(scenario)


def test_phases_are_measured_and_closing_drains_the_queue() -> None:
    async def scenario() -> None:
        bench = Bench()
        first = await bench.occupy()
        waiting = asyncio.create_task(bench.batcher.submit([Query("late", 1)]))
        await settle()
        closing = asyncio.create_task(bench.batcher.close())
        await settle()
        with pytest.raises(ServiceBusyError, match="shutting down"):
            await bench.batcher.submit([Query("too late", 1)])
        bench.search.go.set()
        await closing
        assert await first == ["first#0"]
        [answer] = await waiting
        assert (answer.encode_seconds, answer.search_seconds) == (0.25, 0.125)
        assert answer.queue_seconds > 0

    asyncio.run(scenario())
