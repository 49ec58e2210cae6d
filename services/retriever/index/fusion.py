"""Reciprocal rank fusion of several rankings (Cormack, Clarke and Büttcher, SIGIR 2009)."""

from __future__ import annotations

from collections.abc import Sequence

# The constant of the paper.
_K = 60


def fuse(rankings: Sequence[Sequence[int]], top_k: int) -> list[tuple[int, float]]:
    """Fuse rankings of positions, best first; -1 stands for nothing found.

    Returns:
        At most `top_k` pairs of position and score, Σ 1 / (60 + rank) with ranks from 1, best first. Equal scores keep
        the order in which they were first seen.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, position in enumerate(ranking, start=1):
            if position >= 0:
                scores[position] = scores.get(position, 0.0) + 1 / (_K + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])[:top_k]
