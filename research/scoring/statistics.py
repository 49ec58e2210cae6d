"""Intervals of means over questions that are not independent, those about one entity drawn together; and of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS = 10_000
_Z = 1.959963984540054  # of a normal distribution, 95 % lie within so many standard deviations
_MAX_NUMBERS = 4_000_000  # in memory at once


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
        values: one per question; to compare two models, their difference on that question (a paired bootstrap).
        clusters: the entity of each question.

    Raises:
        ValueError: there are no values, or not one cluster per value.
    """
    return cluster_bootstraps([values], clusters, seed=seed)[0]


def cluster_bootstraps(columns: Sequence[Sequence[float]], clusters: Sequence[str], *, seed: int = 0) -> list[Estimate]:
    """Like `cluster_bootstrap`, for several values per question with the same draws."""
    if not clusters or any(len(values) != len(clusters) for values in columns):
        raise ValueError(f"{', '.join(str(len(values)) for values in columns)} values for {len(clusters)} clusters")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    weighted = [np.bincount(index, weights=np.asarray(values, dtype=np.float64)) for values in columns]
    sums, counts = np.stack(weighted, axis=1), np.bincount(index)
    rng = np.random.default_rng(seed)
    shares, at_once = np.full(len(counts), 1 / len(counts)), max(1, _MAX_NUMBERS // len(counts))
    means = np.empty((_DRAWS, len(columns)))
    for start in range(0, _DRAWS, at_once):
        # How often each cluster is drawn, [draws, clusters]: the mean of a draw is a ratio of two weighted sums.
        drawn = rng.multinomial(len(counts), shares, size=min(at_once, _DRAWS - start)).astype(np.float64)
        means[start : start + at_once] = (drawn @ sums) / (drawn @ counts)[:, None]
    lows, highs = np.quantile(means, (0.025, 0.975), axis=0)
    return [
        Estimate(float(column.sum() / counts.sum()), float(low), float(high), len(clusters))
        for column, low, high in zip(weighted, lows, highs, strict=True)
    ]


def wilson(hits: int, n: int) -> Estimate:
    """Share and score interval of independent trials, also where all or none hit (Wilson 1927).

    Raises:
        ValueError: there are no trials, or not 0 to n hits.
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} hits in {n} trials")
    share, spread = hits / n, _Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)
