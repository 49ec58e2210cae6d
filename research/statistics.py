"""Intervals for means over questions that are not independent: those about one entity come and go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` values with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def cluster_bootstrap(values: Sequence[float], clusters: Sequence[str], *, seed: int = 0) -> Estimate:
    """Mean and percentile interval, drawing whole clusters with replacement (Efron & Tibshirani 1993, ch. 8 and 13).

    Args:
        values: one a question; for the difference of two models, the difference on that question (a paired bootstrap).
        clusters: the entity of each question.

    Raises:
        ValueError: there is no value, or not one cluster for each.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values for {len(clusters)} clusters")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(index, weights=np.asarray(values, dtype=np.float64)), np.bincount(index)
    rng = np.random.default_rng(seed)
    # How often each cluster is drawn, [draws, clusters]: the mean of a draw is a ratio of two weighted sums.
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=_DRAWS)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), len(values))
