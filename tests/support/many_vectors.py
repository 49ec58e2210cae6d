"""Vectors in memory, in parts, where a test needs `VectorSource`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from services.retriever.types import Vectors


class InMemory:
    """Handed out in parts of `rows`."""

    def __init__(self, vectors: Vectors, rows: int = 256) -> None:
        self._vectors = vectors
        self._rows = rows

    def __len__(self) -> int:
        return len(self._vectors)

    def parts(self, start: int = 0) -> Iterator[Vectors]:
        """From a position on."""
        return (self._vectors[first : first + self._rows] for first in range(start, len(self), self._rows))

    def sample(self, count: int, seed: int) -> Vectors:
        """Draw `count` of them."""
        drawn: Vectors = np.random.default_rng(seed).permutation(self._vectors)[:count]
        return drawn
