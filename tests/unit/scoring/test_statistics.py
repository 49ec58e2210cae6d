"""Intervals: of means, against the closed form, a plain-Python bootstrap, known cases; of shares, against a paper."""

from __future__ import annotations

import math
import random
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.scoring.statistics import cluster_bootstrap, wilson


def test_single_clusters_give_the_usual_interval_of_a_mean() -> None:
    rng = random.Random(1)
    values = [float(rng.random() < 0.3) for _ in range(600)]
    estimate = cluster_bootstrap(values, [str(i) for i in range(600)])
    margin = 1.96 * pstdev(values) / math.sqrt(600)
    assert estimate.mean == pytest.approx(fmean(values))
    assert estimate.low == pytest.approx(estimate.mean - margin, abs=0.004)
    assert estimate.high == pytest.approx(estimate.mean + margin, abs=0.004)


def test_questions_of_one_entity_that_agree_count_once() -> None:
    """Ten copies of each value carry no more knowledge than one: the interval must not shrink."""
    rng = random.Random(2)
    values = [float(rng.random() < 0.5) for _ in range(60)]
    single = cluster_bootstrap(values, [str(i) for i in range(60)])
    copies = cluster_bootstrap([v for v in values for _ in range(10)], [str(i) for i in range(60) for _ in range(10)])
    assert copies.high - copies.low == pytest.approx(single.high - single.low, abs=0.02)
    assert copies.n == 600


def test_it_equals_a_bootstrap_written_out() -> None:
    clusters = {"a": [1.0, 1.0, 0.0], "b": [0.0], "c": [1.0, 0.0], "d": [0.0, 0.0], "e": [1.0]}
    rng = random.Random(3)
    means = sorted(
        fmean(value for name in rng.choices(list(clusters), k=len(clusters)) for value in clusters[name])
        for _ in range(10_000)
    )
    estimate = cluster_bootstrap(
        [value for values in clusters.values() for value in values],
        [name for name, values in clusters.items() for _ in values],
    )
    assert estimate.low == pytest.approx(means[250], abs=0.02)
    assert estimate.high == pytest.approx(means[9749], abs=0.02)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.sampled_from("abcdef")), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_the_interval_lies_within_the_values_and_ignores_order(
    rows: list[tuple[float, str]], rng: random.Random
) -> None:
    estimate = cluster_bootstrap([v for v, _ in rows], [c for _, c in rows])
    assert min(v for v, _ in rows) - 1e-9 <= estimate.low <= estimate.high <= max(v for v, _ in rows) + 1e-9
    rng.shuffle(rows)
    again = cluster_bootstrap([v for v, _ in rows], [c for _, c in rows])
    assert (again.low, again.high) == pytest.approx((estimate.low, estimate.high))


def test_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="0 values"):
        cluster_bootstrap([], [])
    with pytest.raises(ValueError, match="2 values for 1 clusters"):
        cluster_bootstrap([1.0, 0.0], ["a"])


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombe_1998(hits: int, n: int, low: float, high: float) -> None:
    found = wilson(hits, n)
    assert (found.mean, found.n) == (hits / n, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson(hits, n)
