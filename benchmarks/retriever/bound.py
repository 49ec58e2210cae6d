"""The in-process bound: encode and search the bodies of a file in batches, nothing else; prints the best queries/s.

Run by load.py. Tries batch sizes, each in the order of the file and sorted by length, and reports the fastest: of both
steps in turn, as in a plain loop, and of encoding alone, which a server that searches beside it cannot pass.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from research.config import load_settings
from services.retriever.encoder.checkpoint import open_checkpoint
from services.retriever.encoder.encoder import load_encoder
from services.retriever.index.search_index import SearchIndex

BATCHES = (8, 16, 32, 64, 128, 256)
TOP_K = 5


def main(bodies: Path, seconds: float, overrides: list[str]) -> None:
    """Print JSON: the best rate, and the batch and order that had it."""
    settings = load_settings(overrides=overrides)
    data, threads = settings.paths.data, settings.retriever.threads
    checkpoint = open_checkpoint(settings.encoder.name, data)
    encoder = load_encoder(checkpoint, settings.encoder, settings.encoder.backend, threads, data)
    index = SearchIndex(settings.corpus.index, settings.index_dir, checkpoint, settings.encoder, threads)
    queries = [json.loads(line)["query"] for line in bodies.read_text(encoding="utf-8").splitlines()]
    # Sorted within parts, as a server could: all of the shortest first would be another load.
    parts = [sorted(queries[start : start + 512], key=len) for start in range(0, len(queries), 512)]
    orders = {"as they come": queries, "by length": [query for part in parts for query in part]}
    best = (0.0, "", 0)
    encoding = 0.0
    for name, ordered in orders.items():
        for size in BATCHES:
            begun, done, encoded = time.perf_counter(), 0, 0.0
            while (passed := time.perf_counter() - begun) < seconds:
                start = done % len(ordered)
                batch = ordered[start : start + size]
                at = time.perf_counter()
                vectors = encoder.encode_queries(batch)
                encoded += time.perf_counter() - at
                index.search(batch, vectors, TOP_K)
                done += len(batch)
            best = max(best, (done / passed, name, size))
            encoding = max(encoding, done / encoded)
    print(json.dumps({"rate": best[0], "order": best[1], "batch": best[2], "encoding alone": encoding}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
