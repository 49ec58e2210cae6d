"""The pipeline: batches, merging, the cache, the queue's limit, what is measured."""

from __future__ import annotations

import asyncio

import pytest

from research.errors import ServiceBusyError
from services.retriever.batching.batch_queue import Limits
from services.retriever.batching.pipeline import SearchPipeline
from services.retriever.batching.result_cache import ResultCache
from services.retriever.types import Query
from tests.support.pipeline_bench import Bench, FakeEncoder, FakeIndex, with_bench


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


def test_a_full_queue_refuses_whole_requests_and_admits_again_later() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        three = bench.submit("a", "b", "c")
        await bench.waiting(3)
        with pytest.raises(ServiceBusyError, match="3 queries are waiting and the limit is 4"):
            await bench.pipeline.submit([Query("d", 1, bench.index), Query("e", 1, bench.index)])
        assert bench.pipeline.depth == 3
        joined = bench.submit("a", "b", "d")  # two of them wait already, so there is room
        bench.encoder.go.set()
        await asyncio.gather(first, three, joined)
        assert bench.pipeline.depth == 0
        assert await bench.submit("d", "e") == ["d#0", "e#0"]

    with_bench(scenario, queue=4)


def test_phases_are_measured_and_closing_drains_the_queue() -> None:
    async def scenario() -> None:
        bench = Bench(Limits(8, 1000, 16, 10_000), merge=True, cache_bytes=0)
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


def test_the_expected_wait_is_that_of_full_batches_even_after_single_queries() -> None:
    pipeline = SearchPipeline(
        FakeEncoder(),
        ResultCache(0),
        Limits(64, 1000, 4096, 10_000),
        merge=True,
        max_wait=60,
        observe=lambda _report: None,
    )
    for _ in range(50):
        pipeline._note_pace(0.01, 1)
    pipeline._note_pace(0.16, 64)
    per_query = pipeline._recent_seconds / pipeline._recent_queries
    assert per_query < 0.004


def test_requests_take_turns_so_a_large_one_makes_nobody_wait_for_all_of_it() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        large = bench.submit(*"abcdefgh")
        await bench.waiting(8)
        small, middle = bench.submit("1"), bench.submit("2", "3", "4")
        await bench.waiting(12)
        bench.encoder.go.set()
        await asyncio.gather(first, large, small, middle)

    batches = with_bench(scenario, batch=4).encoder.batches
    assert batches == [["first"], ["a", "1", "2", "b"], ["3", "c", "4", "d"], ["e", "f", "g", "h"]]


def test_who_asks_for_what_a_large_request_has_waiting_does_not_wait_for_its_place() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        large = bench.submit(*"abcdefgh")
        await bench.waiting(8)
        joins = bench.submit("h", "g")
        await asyncio.sleep(0)
        bench.encoder.go.set()
        assert await joins == ["h#0", "g#0"]
        await asyncio.gather(first, large)

    assert with_bench(scenario, batch=2).encoder.batches == [["first"], ["a", "h"], ["b", "g"], ["c", "d"], ["e", "f"]]


def test_characters_count_too_but_a_request_alone_and_small_ones_are_admitted() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        large = bench.submit("a" * 7000, "b" * 7000)
        await bench.waiting(2)
        with pytest.raises(ServiceBusyError, match="10000 characters"):
            await bench.pipeline.submit([Query("c" * 200, 1, bench.index)])
        small = bench.submit("small")
        bench.encoder.go.set()
        assert await small == ["small#0"]
        await asyncio.gather(first, large)
        assert bench.pipeline._batch_queue.chars == 0
        await bench.submit("c" * 200)

    with_bench(scenario, queue=64, batch_tokens=100)


def test_a_queue_that_a_large_request_fills_has_a_reserve_for_small_ones() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        large = bench.submit(*(f"large {number}" for number in range(64)))
        await bench.waiting(64)
        assert not bench.pipeline.is_full
        with pytest.raises(ServiceBusyError):
            await bench.pipeline.submit([Query(text, 1, bench.index) for text in "ab"])
        small = [bench.submit(f"small {number}") for number in range(8)]
        await bench.waiting(72)
        assert bench.pipeline.is_full
        with pytest.raises(ServiceBusyError):
            await bench.pipeline.submit([Query("one more", 1, bench.index)])
        bench.encoder.go.set()
        await asyncio.gather(first, large, *small)

    with_bench(scenario, queue=64)


def test_a_search_that_is_not_done_in_time_is_refused_and_dropped() -> None:
    async def scenario(bench: Bench) -> None:
        first = await bench.occupy()
        late = bench.submit("late", "later")
        with pytest.raises(ServiceBusyError, match=r"not done within 0\.2 s"):
            await late
        bench.pipeline._max_wait = 60  # a busy machine may take more than the former for what comes next
        bench.encoder.go.set()
        await asyncio.gather(first, return_exceptions=True)
        assert await bench.submit("next") == ["next#0"]

    bench = with_bench(scenario, max_wait=0.2)
    assert bench.encoder.batches == [["first"], ["next"]]
