"""Measures the recall of an index, against exact search and against gold passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from research.errors import AssetError
from research.questions.gold import GoldPassage, GoldQuery, load_gold
from research.settings import Settings
from services.process.progress import Advance, progress
from services.retriever.encoder.checkpoint import open_checkpoint
from services.retriever.encoder.encoder import load_encoder
from services.retriever.index.passage_store import PassageStore
from services.retriever.index.search_index import SearchIndex
from services.retriever.index.vector_index import FULL_VECTORS, Positions
from services.retriever.types import Vectors

DEPTHS = (1, 5, 10)

# How many titles serve as queries if there are no questions.
_SAMPLED_TITLES = 500
_FIRST_WORDS = 12
_AT_ONCE = 128
_BLOCK_ROWS = 16_384
_BLOCK_QUERIES = 512


@dataclass(frozen=True, slots=True)
class Recall:
    """A row of the table: what was measured against what, with how many queries, and recall at each of `DEPTHS`.

    `missing_titles` counts the queries with a gold passage that the index lacks, so that no search can find it.
    """

    measured: str
    against: str
    queries: int
    at: tuple[float, ...]
    missing_titles: int = 0


class Rows(Protocol):
    """Vectors, of which some rows at a time are read, [rows, dimension]."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: slice, /) -> NDArray[Any]: ...


def evaluate_index(settings: Settings, questions: Path | None) -> list[Recall]:
    """Measure the published index.

    Args:
        settings: name the index and its encoder.
        questions: a file for `load_gold`; None takes titles of the index as queries, compared with exact search only.

    Raises:
        AssetError: index, encoder or questions are missing or corrupt, or the index holds none of the gold passages.
        ConfigurationError: the index was built with another encoder.
    """
    # 1. Encode the queries and search for them.
    data, threads = settings.paths.data, settings.retriever.threads
    checkpoint = open_checkpoint(settings.encoder.name, data)
    index = SearchIndex(settings.corpus.index, settings.index_dir, checkpoint, settings.encoder, threads)
    encoder = load_encoder(checkpoint, settings.encoder, settings.encoder.backend, threads, data)
    gold = load_gold(questions) if questions else []
    texts = [query.text for query in gold] or sampled_titles(index.passages)
    vectors = encoder.encode_queries(texts)
    deepest = min(max(DEPTHS), index.dense.count)
    # In portions: reranking holds the candidates of all queries of a call.
    portions = (vectors[start : start + _AT_ONCE] for start in range(0, len(vectors), _AT_ONCE))
    found = {"vectors": [row for portion in portions for row in index.dense.search(portion, deepest)[1].tolist()]}
    # 2. Compare with exact search, if the index keeps the full vectors.
    rows: list[Recall] = []
    full = settings.index_dir / FULL_VECTORS
    if full.is_file():
        exact = exact_search(np.load(full, mmap_mode="r"), vectors, deepest).tolist()
        at = tuple(recall_at(found["vectors"], [set(row[:depth]) for row in exact], depth) for depth in DEPTHS)
        rows.append(Recall("vectors", "exact search", len(texts), at))
    elif (imported := index.manifest.imported) and imported.recall:
        at = tuple(imported.recall[depth] for depth in DEPTHS)
        rows.append(Recall("vectors", f"exact search in {imported.file}, when imported", imported.queries, at))
    # 3. Compare with the gold passages, by vectors, by words and by both.
    if gold:
        if index.lexical is not None:
            found["words"] = index.lexical.search(texts, deepest).tolist()
            ranked = index.rank(texts, vectors, deepest)
            found["both, fused"] = [[position for position, _ in row] for row in ranked]
        places = gold_positions(index.passages, gold)
        missing_titles = sum(-1 in row for row in places)
        rows += [
            Recall(
                name,
                "gold passages",
                len(gold),
                tuple(recall_at(own, places, depth) for depth in DEPTHS),
                missing_titles,
            )
            for name, own in found.items()
        ]
    return rows


def exact_search(full: Rows, vectors: Vectors, top_k: int) -> Positions:
    """Positions of the `top_k` rows of `full` with the largest inner products, best first, [queries, top_k].

    Reads `full` once per `_BLOCK_QUERIES` queries, in blocks, so that memory grows with neither.
    """
    blocks = [vectors[start : start + _BLOCK_QUERIES] for start in range(0, len(vectors), _BLOCK_QUERIES)]
    with progress("comparing", "vectors", total=len(full) * len(blocks)) as advance:
        return np.concatenate([_exact_block(full, block, top_k, advance) for block in blocks])


def _exact_block(full: Rows, vectors: Vectors, top_k: int, advance: Advance) -> Positions:
    rows = np.arange(len(vectors))[:, None]
    scores = np.empty((len(vectors), 0), dtype=np.float32)
    positions = np.empty((len(vectors), 0), dtype=np.int64)
    for start in range(0, len(full), _BLOCK_ROWS):
        products = vectors @ np.asarray(full[start : start + _BLOCK_ROWS], dtype=np.float32).T
        kept = min(top_k, products.shape[1])
        best = np.argpartition(-products, kept - 1, axis=1)[:, :kept]
        scores = np.concatenate([scores, products[rows, best]], axis=1)
        positions = np.concatenate([positions, best + start], axis=1)
        advance(products.shape[1])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(positions, order, axis=1)


def gold_positions(store: PassageStore, gold: Sequence[GoldQuery]) -> list[set[int]]:
    """Positions of each query's gold passages; -1, which no search finds, stands for one that the index lacks.

    Raises:
        AssetError: the index holds none of them.
    """
    wanted = {passage for query in gold for passage in query.passages}
    places: dict[GoldPassage, int] = {}
    for position in range(len(store)):
        record = store.record(position)
        for passage in (GoldPassage(record["title"], record["text"]), GoldPassage(record["title"])):
            if passage in wanted:
                places.setdefault(passage, position)
    if not places:
        raise AssetError(f"none of the {len(wanted)} gold passages is in the index; it was built from another corpus")
    return [{places.get(passage, -1) for passage in query.passages} for query in gold]


def recall_at(ranked: Sequence[Sequence[int]], gold: Sequence[set[int]], depth: int) -> float:
    """Mean over queries of the share of their gold positions among the first `depth`."""
    shares = [len(wanted & set(row[:depth]) - {-1}) / len(wanted) for row, wanted in zip(ranked, gold, strict=True)]
    return float(np.mean(shares))


def sampled_titles(store: PassageStore) -> list[str]:
    """Titles of passages, drawn at random, which serve as queries; where there is none, how the text begins."""
    places = np.random.default_rng(0).permutation(len(store))[:_SAMPLED_TITLES].tolist()
    records = [store.record(place) for place in places]
    return [each["title"].strip() or " ".join(each["text"].split()[:_FIRST_WORDS]) for each in records]
