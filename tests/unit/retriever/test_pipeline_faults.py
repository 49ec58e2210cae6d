"""The pipeline when clients leave, indexes and encoders fail, or a stage has a bug: nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from research.errors import ServiceError
from services.retriever.batching.batch_queue import Batch, Limits
from services.retriever.batching.metrics import Metrics
from services.retriever.batching.pipeline import SearchPipeline
from services.retriever.batching.result_cache import ResultCache
from services.retriever.types import Query
from tests.support.pipeline_bench import Bench, FakeEncoder, FakeIndex, with_bench


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
            encoder, ResultCache(0), Limits(8, 1000, 16, 10_000), merge=True, max_wait=60, observe=lambda _report: None
        )
        leaves = asyncio.create_task(pipeline.submit([Query("same", 1, index)]))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        taken_out = pipeline._batch_queue.sweep()
        joins = asyncio.create_task(pipeline.submit([Query("same", 1, index)]))
        await asyncio.sleep(0)
        pipeline.on_abandoned(taken_out)
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
        assert b"research_retriever_merged_total 1.0" in metrics.render()

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


def test_a_stage_that_breaks_tells_those_who_wait_and_goes_on() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        batch_queue = bench.pipeline._batch_queue
        take = batch_queue._take_batch

        def broken() -> Batch:
            batch_queue._take_batch = take  # type: ignore[method-assign]
            raise ZeroDivisionError

        doomed = bench.submit("a")
        await bench.waiting(1)
        batch_queue._take_batch = broken  # type: ignore[method-assign]
        bench.encoder.go.set()
        for error in await asyncio.gather(first, doomed, return_exceptions=True):
            assert isinstance(error, ServiceError) or error == ["first#0"]
        assert await bench.submit("b") == ["b#0"]

    with_bench(scenario)
