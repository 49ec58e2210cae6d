"""How an index stores its vectors: exact or compressed, chosen by name or by size.

Measure the structures with `python -m benchmarks.retriever.million`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from research.errors import ConfigurationError

FaissConfigName = Literal["flat", "hnsw", "ivf-sq8", "ivf-pq", "ivf-rabitq"]
# A structure that somebody else built: its file is served as it is, and searched as it says itself.
KEPT: Literal["kept"] = "kept"

# Up to this count, the exact search of a batch takes less time than encoding it.
_MAX_FLAT = 200_000
_MAX_HNSW = 2_000_000
_TRAINING_VECTORS_PER_LIST = 40
_MIN_FOR_LISTS = 500
# The neighbors of a query lie in many lists, however few there are: probing 8 of 256 lists found two thirds of flat's
# hits (benchmarks/retriever/million.py with --count 12000).
_MIN_PROBES = 64
# For the ranges and codes, which are learned with or without lists.
_TRAINING_VECTORS = 10_000
# The default of 40 costs a tenth of the recall at 400,000 vectors (shared measurements on FAISS).
HNSW_EF_CONSTRUCTION = 160


@dataclass(frozen=True, slots=True)
class FaissConfig:
    """A FAISS structure for unit vectors and how it is searched.

    Attributes:
        factory: what `faiss.index_factory` makes it from; of a kept one, its class in FAISS.
        lists: inverted lists, 0 if there are none; `probes` of them are searched.
        ef_search: candidates that a graph search keeps, 0 without a graph.
        rerank: candidates per wanted passage that are reranked by their full vectors; 0 reranks none.
    """

    name: FaissConfigName | Literal["kept"]
    factory: str
    lists: int = 0
    probes: int = 0
    ef_search: int = 0
    rerank: int = 0

    @property
    def training_vectors(self) -> int:
        """How many vectors its lists and codes are learned from."""
        return max(self.lists * _TRAINING_VECTORS_PER_LIST, _TRAINING_VECTORS)


def faiss_config_for(name: FaissConfigName | Literal["auto"], count: int, dimension: int) -> FaissConfig:
    """The structure of that name, sized for `count` vectors; `auto` chooses by the count alone.

    Raises:
        ConfigurationError: there are too few vectors to learn lists or codes from, or they cannot be cut into codes.
    """
    if name == "auto":
        name = "flat" if count <= _MAX_FLAT else "hnsw" if count <= _MAX_HNSW else "ivf-rabitq"
    if name == "flat":
        return FaissConfig(name, "Flat")
    if name == "hnsw":
        return FaissConfig(name, "HNSW32_SQ8", ef_search=128)
    if count < _MIN_FOR_LISTS:
        raise ConfigurationError(
            f"corpus.index_type={name}: {count} passages are too few to learn lists from; use flat, which is exact"
        )
    if name == "ivf-pq" and dimension % 4:
        raise ConfigurationError(
            f"corpus.index_type=ivf-pq: vectors of size {dimension} do not divide into groups of four; use ivf-rabitq"
        )
    lists = _lists_for(count)
    probes = max(lists // 32, min(lists, _MIN_PROBES))
    if name == "ivf-sq8":
        return FaissConfig(name, f"IVF{lists},SQ8", lists, probes)
    if name == "ivf-pq":
        # A four-bit code per four dimensions: an eighth of a byte per dimension. Their ranking is coarse, so many
        # are reranked: with 16 recall@5 was .79, with 64 .92 (benchmarks/retriever/million.py).
        return FaissConfig(name, f"IVF{lists},PQ{dimension // 4}x4fs", lists, probes, rerank=64)
    return FaissConfig(name, f"IVF{lists},RaBitQfs", lists, probes, rerank=16)


def _lists_for(count: int) -> int:
    """Four times the square root of `count`, as a power of two, and few enough to be trained from `count` vectors."""
    wanted = 4 * count**0.5
    lists = 1
    while lists * 2 <= wanted and lists * 2 * _TRAINING_VECTORS_PER_LIST <= count:
        lists *= 2
    return lists
