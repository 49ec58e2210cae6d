"""The parts of a search: a query, the index to search, and the hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
TokenIds = list[int]
# `id`, `title`, `text`, `score`; and `fields` as JSON if the row of the corpus said more.
HitDict = dict[str, str | float]
HitDicts = list[HitDict]


def served(hit: HitDict) -> dict[str, Any]:
    """A hit as `/search` answers it: `fields` as an object."""
    return {**hit, "fields": orjson.loads(str(hit["fields"]))} if "fields" in hit else dict(hit)


class SearchTarget(Protocol):
    """One revision of an index. Not to be called from two threads at once."""

    @property
    def key(self) -> str:
        """Names index and revision; the same key always gives the same hits."""
        ...

    def search(self, texts: Sequence[str], vectors: Vectors, top_k: int) -> list[HitDicts]:
        """Find the best passages of each query, given as text and as unit vector, float32 [queries, dimension]."""
        ...


class QueryEncoder(Protocol):
    """Texts to vectors in two steps, which may run in two threads."""

    def tokenize(self, queries: Sequence[str]) -> list[TokenIds]:
        """Tokenize queries, prefix and special tokens included."""
        ...

    def encode(self, rows: Sequence[TokenIds]) -> Vectors:
        """Encode token ids into unit vectors, float32 [rows, dimension]."""
        ...


@dataclass(frozen=True, slots=True)
class Query:
    """A text to search for, the number of passages wanted, and the index to search."""

    text: str
    top_k: int
    target: SearchTarget

    @property
    def key(self) -> tuple[str, str, int]:
        """Queries with the same key have the same hits."""
        return self.target.key, self.text, self.top_k


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The hits of one query, best first, and the seconds of waiting, of encoding its batch and of searching for it.

    All seconds are 0 if the hits come from the cache.
    """

    hits: HitDicts
    queue_seconds: float = 0.0
    encode_seconds: float = 0.0
    search_seconds: float = 0.0
