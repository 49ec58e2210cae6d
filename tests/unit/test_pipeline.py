"""The pipeline as a unit: encoder and index are fakes that can be held still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from research.errors import ServiceBusyError, ServiceError
from services.retriever.backlog import Limits, Taken
from services.retriever.cache import ResultCache
from services.retriever.metrics import Metrics
from services.retriever.pipeline import BatchReport, SearchPipeline
from services.retriever.search import Hits, Query, TokenIds, Vectors


class FakeEncoder:
    """A token a letter; holds each batch until `go` is set; breaks on a "!"."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.entered = threading.Event()
        self.hold_after = -1  # further batches until one is held again, until `release`
        self.held, self.release = threading.Event(), threading.Event()
        self.faults: dict[str, BaseException] = {}  # raised once by the method of that name

    def _may_fail(self, method: str) -> None:
        if fault := self.faults.pop(method, None):
            raise fault

    def tokenise(self, queries: Sequence[str]) -> list[TokenIds]:
        self._may_fail("tokenise")
        return [[ord(letter) for letter in query] for query in queries]

    def encode(self, rows: Sequence[TokenIds]) -> Vectors:
        self.batches.append(["".join(map(chr, row)) for row in rows])
        self.entered.set()
        assert self.go.wait(timeout=10)
        self._may_fail("encode")
        self.hold_after -= 1
        if self.hold_after == 0:
            self.held.set()
            assert self.release.wait(timeout=10)
        if any(ord("!") in row for row in rows):
            raise RuntimeError("poisoned")
        return np.array([[float(sum(row))] for row in rows], dtype=np.float32)


class FakeIndex:
    """Answers `text` with hits `key/text#0`, `key/text#1`, …; checks that text and vector belong together."""

    def __init__(self, key: str = "index@1") -> None:
        self.key = key
        self.searches: list[list[str]] = []
        self.broken = False
        self.failure: Exception | None = None
        self.when: threading.Event | None = None  # the failure waits for it

    def search(self, texts: Sequence[str], vectors: Vectors, top_k: int) -> list[Hits]:
        self.searches.append(list(texts))
        if self.broken:
            raise RuntimeError("no index today")
        if self.failure:
            assert self.when is None or self.when.wait(timeout=10)
            raise self.failure
        assert [sum(map(ord, text)) for text in texts] == vectors[:, 0].tolist()
        return [[{"id": f"{self.key}/{text}#{rank}", "score": 1.0} for rank in range(top_k)] for text in texts]


class Bench:
    """A started pipeline over fakes, and what it reported."""

    def __init__(self, limits: Limits, merge: bool, cache_bytes: int) -> None:
        self.encoder, self.index = FakeEncoder(), FakeIndex()
        self.reports: list[BatchReport] = []
        self.cache = ResultCache(cache_bytes)
        self.pipeline = SearchPipeline(self.encoder, self.cache, limits, merge=merge, observe=self.reports.append)
        self.pipeline.start()

    def submit(self, *texts: str, top_k: int = 1, index: FakeIndex | None = None) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self._ids([Query(text, top_k, index or self.index) for text in texts]))

    async def occupy(self) -> asyncio.Task[list[str]]:
        """Submit one query and return once the encoder is busy with it."""
        task = self.submit("first")
        assert await asyncio.to_thread(self.encoder.entered.wait, 10)
        return task

    async def waiting(self, depth: int) -> None:
        """Return once so many queries wait and all of them are tokenised."""
        while self.pipeline.depth != depth or self.pipeline._backlog.tokenised != depth:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def _ids(self, queries: list[Query]) -> list[str]:
        answers = await self.pipeline.submit(queries)
        return ["+".join(str(hit["id"]) for hit in answer.hits).replace("index@1/", "") for answer in answers]


def with_bench(
    scenario: Callable[[Bench], Awaitable[None]],
    *,
    batch: int = 8,
    batch_tokens: int = 1000,
    queue: int = 16,
    merge: bool = True,
    cache_bytes: int = 0,
) -> Bench:
    """Run a scenario on a fresh bench, then close the pipeline."""

    async def main() -> Bench:
        bench = Bench(Limits(batch, batch_tokens, queue), merge, cache_bytes)
        try:
            async with asyncio.timeout(20):
                await scenario(bench)
        finally:
            bench.encoder.go.set()
            await bench.pipeline.close()
        return bench

    return asyncio.run(main())


def test_what_arrives_while_the_encoder_is_busy_goes_as_one_batch() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        others = [bench.submit(text) for text in "abc"]
        await bench.waiting(3)
        bench.encoder.go.set()
        assert await asyncio.gather(first, *others) == [["first#0"], ["a#0"], ["b#0"], ["c#0"]]

    bench = with_bench(scenario)
    assert bench.encoder.batches == bench.index.searches == [["first"], ["a", "b", "c"]]


def test_a_batch_holds_at_most_so_many_queries_and_requests_keep_their_order() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        five = bench.submit("a", "b", "c", "d", "e")
        await bench.waiting(5)
        bench.encoder.go.set()
        await first
        assert await five == ["a#0", "b#0", "c#0", "d#0", "e#0"]

    assert with_bench(scenario, batch=2).encoder.batches == [["first"], ["a", "b"], ["c", "d"], ["e"]]


def test_a_batch_holds_at_most_so_many_tokens_but_always_one_query() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        texts = bench.submit("aaaa", "bb", "c", "dddddddd", "e")
        await bench.waiting(5)
        bench.encoder.go.set()
        await asyncio.gather(first, texts)

    batches = with_bench(scenario, batch_tokens=6).encoder.batches
    assert batches == [["first"], ["aaaa", "bb"], ["c"], ["dddddddd"], ["e"]]


def test_equal_queries_are_worked_on_once_even_while_they_are_encoded() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        tasks = [bench.submit("first"), bench.submit("same"), bench.submit("other"), bench.submit("same")]
        await bench.waiting(2)
        bench.encoder.go.set()
        assert await asyncio.gather(first, *tasks) == [["first#0"], ["first#0"], ["same#0"], ["other#0"], ["same#0"]]

    bench = with_bench(scenario)
    assert bench.encoder.batches == [["first"], ["same", "other"]]
    assert [(r.queries, len(r.answers), r.merged) for r in bench.reports] == [(1, 2, 1), (2, 3, 1)]


def test_without_merging_each_query_is_worked_on() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        two = [bench.submit("same"), bench.submit("same")]
        await bench.waiting(2)
        bench.encoder.go.set()
        await asyncio.gather(first, *two)

    assert with_bench(scenario, merge=False).encoder.batches == [["first"], ["same", "same"]]


def test_another_depth_or_another_index_is_another_query() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        newer = FakeIndex("index@2")
        tasks = [bench.submit("same"), bench.submit("same", top_k=2), bench.submit("same", index=newer)]
        await bench.waiting(3)
        bench.encoder.go.set()
        await first
        assert await asyncio.gather(*tasks) == [["same#0"], ["same#0+same#1"], ["index@2/same#0"]]
        assert newer.searches == [["same"]]

    bench = with_bench(scenario)
    assert bench.index.searches == [["first"], ["same"], ["same"]]


def test_what_was_found_is_kept_until_its_index_has_a_new_revision() -> None:
    async def scenario(bench: Bench) -> None:
        bench.encoder.go.set()
        assert await bench.submit("a", "b") == ["a#0", "b#0"]
        assert await bench.submit("b", "c", "a") == ["b#0", "c#0", "a#0"]
        assert await bench.submit("a", index=FakeIndex("index@2")) == ["index@2/a#0"]

    bench = with_bench(scenario, cache_bytes=100_000)
    assert bench.encoder.batches == [["a", "b"], ["c"], ["a"]]
    assert (bench.cache.found, bench.cache.missed) == (2, 4)


def test_cancelled_queries_are_dropped_before_encoding() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        kept, gone, half = bench.submit("kept"), bench.submit("gone", "gone too", "half"), bench.submit("half")
        await bench.waiting(4)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        bench.encoder.go.set()
        await first
        assert await asyncio.gather(kept, half) == [["kept#0"], ["half#0"]]

    bench = with_bench(scenario)
    assert bench.encoder.batches == [["first"], ["kept", "half"]]
    assert sum(report.dropped for report in bench.reports) == 2


def test_cancelling_while_encoding_harms_nobody() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        bench.encoder.go.set()
        assert await bench.submit("next") == ["next#0"]

    with_bench(scenario)


def test_a_full_queue_refuses_whole_requests_and_admits_again_later() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        three = bench.submit("a", "b", "c")
        await bench.waiting(3)
        with pytest.raises(ServiceBusyError, match="3 queries wait already and 4 may"):
            await bench.pipeline.submit([Query("d", 1, bench.index), Query("e", 1, bench.index)])
        assert bench.pipeline.depth == 3
        joined = bench.submit("a", "b", "d")  # two of them wait already, so there is room
        bench.encoder.go.set()
        await asyncio.gather(first, three, joined)
        assert bench.pipeline.depth == 0
        assert await bench.submit("d", "e") == ["d#0", "e#0"]

    with_bench(scenario, queue=4)


def test_withdrawn_queries_make_room_in_a_full_queue() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.occupy()
        abandoned = bench.submit("a", "b", "c", "d")
        await bench.waiting(4)
        abandoned.cancel()
        await asyncio.gather(abandoned, return_exceptions=True)
        welcome = bench.submit("e", "f")
        await bench.waiting(2)
        bench.encoder.go.set()
        assert await welcome == ["e#0", "f#0"]

    assert sum(report.dropped for report in with_bench(scenario, queue=4).reports) == 4


def test_who_joins_a_query_that_was_just_taken_out_as_abandoned_is_answered() -> None:
    async def scenario() -> None:
        encoder, index = FakeEncoder(), FakeIndex()
        encoder.go.set()
        pipeline = SearchPipeline(
            encoder, ResultCache(0), Limits(8, 1000, 16), merge=True, observe=lambda _report: None
        )
        leaves = asyncio.create_task(pipeline.submit([Query("same", 1, index)]))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        taken_out = pipeline._backlog.sweep()
        joins = asyncio.create_task(pipeline.submit([Query("same", 1, index)]))
        await asyncio.sleep(0)
        pipeline.drop(taken_out)
        pipeline.start()
        async with asyncio.timeout(10):
            [answer] = await joins
        assert answer.hits[0]["id"] == "index@1/same#0"
        await pipeline.close()

    asyncio.run(scenario())


def test_an_error_reaches_every_request_of_its_batch_and_the_stages_live_on() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        doomed = [bench.submit("poison!"), bench.submit("beside it")]
        await bench.waiting(2)
        bench.encoder.go.set()
        await first
        for error in await asyncio.gather(*doomed, return_exceptions=True):
            assert isinstance(error, ServiceError)
            assert isinstance(error.__cause__, RuntimeError)
        assert await bench.submit("healthy", "beside it") == ["healthy#0", "beside it#0"]

    with_bench(scenario)


def test_phases_are_measured_and_closing_drains_the_queue() -> None:
    async def scenario() -> None:
        bench = Bench(Limits(8, 1000, 16), merge=True, cache_bytes=0)
        first = await bench.occupy()
        waiting = asyncio.create_task(bench.pipeline.submit([Query("late", 1, bench.index)]))
        await bench.waiting(1)
        closing = asyncio.create_task(bench.pipeline.close())
        await asyncio.sleep(0)
        with pytest.raises(ServiceBusyError, match="shutting down"):
            await bench.pipeline.submit([Query("too late", 1, bench.index)])
        bench.encoder.go.set()
        await closing
        assert await first == ["first#0"]
        [answer] = await waiting
        assert min(answer.queue_seconds, answer.encode_seconds, answer.search_seconds) > 0

    asyncio.run(scenario())


def test_an_index_that_fails_fails_nobody_elses_query() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        other = FakeIndex("other@1")
        other.broken = True
        fine, doomed = bench.submit("a"), bench.submit("a", index=other)
        await bench.waiting(2)
        bench.encoder.go.set()
        await first
        assert await fine == ["a#0"]
        with pytest.raises(ServiceError, match="no index today"):
            await doomed

    with_bench(scenario)


def test_one_of_two_leaving_while_they_are_encoded_stops_nothing_with_the_real_metrics() -> None:
    async def scenario(bench: Bench) -> None:
        metrics = Metrics(bench.cache, queue_depth=lambda: bench.pipeline.depth)
        bench.pipeline._observe = metrics.observe_batch
        first = await bench.occupy()
        stays, leaves = bench.submit("stays"), bench.submit("leaves")
        await bench.waiting(2)
        bench.encoder.entered.clear()
        bench.encoder.go.set()
        await first
        leaves.cancel()
        assert await stays == ["stays#0"]
        assert await bench.submit("next", "next") == ["next#0", "next#0"]
        assert b"retriever_merged_total 1.0" in metrics.render()

    with_bench(scenario)


def test_the_other_queries_of_a_failed_request_make_room_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        failing = FakeIndex("failing@1")
        failing.failure, failing.when = RuntimeError("no"), bench.encoder.held
        doomed = bench.submit("a", "b", "c", "d", index=failing)
        await bench.waiting(4)
        bench.encoder.hold_after = 3
        bench.encoder.go.set()
        await first
        with pytest.raises(ServiceError):
            await doomed
        # "b" is being encoded; "c" and "d" wait, for nobody.
        welcome = bench.submit("e", "f", "g", "h")
        await asyncio.sleep(0)
        bench.encoder.release.set()
        assert await welcome == ["e#0", "f#0", "g#0", "h#0"]

    with_bench(scenario, batch=1, queue=4)


class UnspeakableError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("not even that")


def test_what_cannot_be_told_fails_those_who_wait_instead_of_losing_them() -> None:
    async def scenario(bench: Bench) -> None:
        bench.encoder.go.set()
        bench.index.failure = UnspeakableError()
        with pytest.raises(ServiceError, match="a bug"):
            await bench.submit("a")
        bench.index.failure = None
        assert await bench.submit("a") == ["a#0"]

    with_bench(scenario)


class Panic(BaseException):
    pass


@pytest.mark.parametrize("stage", ["tokenise", "encode"])
@pytest.mark.parametrize("fault", [RuntimeError("no"), Panic("rust")])
def test_a_stage_outlives_whatever_its_library_raises(stage: str, fault: BaseException) -> None:
    async def scenario(bench: Bench) -> None:
        bench.encoder.go.set()
        bench.encoder.faults[stage] = fault
        with pytest.raises(ServiceError):
            await bench.submit("a")
        assert await bench.submit("b") == ["b#0"]

    with_bench(scenario)


def test_the_expected_wait_is_that_of_full_batches_even_after_single_queries() -> None:
    pipeline = SearchPipeline(
        FakeEncoder(), ResultCache(0), Limits(64, 1000, 4096), merge=True, observe=lambda _report: None
    )
    for _ in range(50):
        pipeline._note_pace(0.01, 1)
    pipeline._note_pace(0.16, 64)
    per_query = pipeline._recent_seconds / pipeline._recent_queries
    assert per_query < 0.004


def test_a_stage_that_breaks_tells_those_who_wait_and_goes_on() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        backlog = bench.pipeline._backlog
        take = backlog._take_batch

        def broken() -> Taken:
            backlog._take_batch = take  # type: ignore[method-assign]
            raise ZeroDivisionError

        doomed = bench.submit("a")
        await bench.waiting(1)
        backlog._take_batch = broken  # type: ignore[method-assign]
        bench.encoder.go.set()
        for error in await asyncio.gather(first, doomed, return_exceptions=True):
            assert isinstance(error, ServiceError) or error == ["first#0"]
        assert await bench.submit("b") == ["b#0"]

    with_bench(scenario)
