"""The cache of answers never grows beyond its bound, which is about what it really takes."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from services.retriever.batching.result_cache import ResultCache
from services.retriever.types import HitDicts


def hits(count: int, letters: int) -> HitDicts:
    return [{"id": str(rank), "title": "t", "text": "x" * letters, "score": 0.5} for rank in range(count)]


def test_the_least_recently_used_go_first() -> None:
    cache = ResultCache(5_000)
    for text in "abc":
        cache.put(("i", text, 1), hits(1, 500))
    cache.get(("i", "a", 1))
    for text in "de":
        cache.put(("i", text, 1), hits(1, 500))
    assert cache.get(("i", "b", 1)) is None
    assert cache.get(("i", "a", 1)) == hits(1, 500)


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(0, 6), st.integers(0, 3000))), st.integers(0, 20_000))
def test_it_never_exceeds_its_bound(entries: list[tuple[str, int, int]], bound: int) -> None:
    cache = ResultCache(bound)
    for text, count, letters in entries:
        cache.put(("i", text, count), hits(count, letters))
        assert cache.size_bytes <= bound


def test_its_estimate_is_near_what_python_takes() -> None:
    cache = ResultCache(2**30)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(2000):
        # Fresh texts, as they come from the disk.
        found: HitDicts = [
            {**{name: f"{name} {number}-{rank}" * 20 for name in ("id", "title", "text")}, "score": number + rank / 3}
            for rank in range(3)
        ]
        cache.put(("index@revision", f"query {number}", 3), found)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.8 < cache.size_bytes / taken < 1.25
