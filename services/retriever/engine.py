"""Encoder and index together: texts in, passages out. Runs in the batcher's thread."""

from __future__ import annotations

import time

from services.retriever.batching import Hit, Query, SearchedBatch
from services.retriever.encoder import Encoder
from services.retriever.index import SearchIndex


class SearchEngine:
    """Searches a batch of distinct queries in one go. Not to be called from two threads at once."""

    def __init__(self, encoder: Encoder, index: SearchIndex) -> None:
        self._encoder = encoder
        self._index = index

    def search(self, queries: list[Query]) -> SearchedBatch:
        """Find the `top_k` nearest passages of each query; the search seconds include reading the texts."""
        begun = time.perf_counter()
        vectors = self._encoder.encode_queries([query.text for query in queries])
        encoded = time.perf_counter()
        scores, positions = self._index.search(vectors, max(query.top_k for query in queries))
        hits = [
            [self._hit(position, score) for position, score in zip(row[:top_k], row_scores[:top_k], strict=True)]
            for row, row_scores, top_k in zip(
                positions.tolist(), scores.tolist(), (query.top_k for query in queries), strict=True
            )
        ]
        return SearchedBatch(hits, encoded - begun, time.perf_counter() - encoded)

    def _hit(self, position: int, score: float) -> Hit:
        return {**self._index.passages.record(position), "score": score}
