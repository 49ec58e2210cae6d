"""Reciprocal rank fusion against its formula."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.retriever.index.fusion import fuse

RANKINGS = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=12), min_size=1, max_size=3)


def test_what_both_find_beats_what_one_finds_first() -> None:
    assert [position for position, _ in fuse([[1, 2, 3], [4, 3, -1]], 10)] == [3, 1, 4, 2]


@given(RANKINGS, st.integers(1, 40))
def test_scores_are_sums_of_reciprocal_ranks_best_first(rankings: list[list[int]], top_k: int) -> None:
    fused = fuse([[*ranking, -1, -1] for ranking in rankings], top_k)
    assert len(fused) == min(top_k, len(set().union(*rankings)))
    for position, score in fused:
        ranks = [ranking.index(position) + 1 for ranking in rankings if position in ranking]
        assert abs(score - sum(1 / (60 + rank) for rank in ranks)) < 1e-12
    assert [score for _, score in fused] == sorted((score for _, score in fused), reverse=True)


@given(st.lists(st.integers(0, 30), unique=True, max_size=12))
def test_one_ranking_stays_as_it_is(ranking: list[int]) -> None:
    assert [position for position, _ in fuse([ranking], 12)] == ranking
