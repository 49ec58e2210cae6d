"""How far the lead of the best passage over the next moves with what else is in the batch, for int8 queries.

Run: python benchmarks/query_noise.py (needs `make prepare`; half a minute). The margin in
builtin/questions/reach.py rests on the greatest move.
"""

from __future__ import annotations

import random

import numpy as np

from builtin.questions.build import chains_and_facts
from research.config import load_settings
from research.passages import iter_passages
from services.retriever.encoder.checkpoint import open_checkpoint
from services.retriever.encoder.encoder import load_encoder
from services.retriever.index.search_index import SearchIndex

BATCHES = (64, 16, 8, 5, 3, 64)
QUERIES = 1200


def main() -> None:
    """Print the moves for each size of batch, against every query alone."""
    settings = load_settings()
    data = settings.paths.data
    checkpoint = open_checkpoint(settings.encoder.name, data)
    encoder = load_encoder(checkpoint, settings.encoder, settings.encoder.backend, 1, data)
    index = SearchIndex(settings.corpus.index, settings.index_dir, checkpoint, settings.encoder, threads=1)
    passages = list(iter_passages(data / "corpus" / "wikipedia-leads.jsonl"))
    # Those that the margin will refuse are among them.
    queries = sorted({hop.query for question in chains_and_facts(passages, 40)[0] for hop in question.hops})
    queries = random.Random(0).sample(queries, QUERIES)

    def scores(vectors: np.ndarray) -> np.ndarray:
        found, positions = index.dense.search(vectors, len(index.passages))
        by_position = np.empty_like(found)
        np.put_along_axis(by_position, positions, found, axis=1)
        return by_position

    alone = scores(np.concatenate([encoder.encode_queries([query]) for query in queries]))
    best, second = np.argsort(-alone, axis=1)[:, :2].T
    rows = np.arange(QUERIES)
    lead = alone[rows, best] - alone[rows, second]
    print(f"lead alone: median {np.median(lead):.4f}, 5 % below {np.quantile(lead, 0.05):.4f}")
    greatest = 0.0
    for round_number, size in enumerate(BATCHES):
        order = random.Random(round_number).sample(range(QUERIES), QUERIES)
        vectors = np.empty((QUERIES, checkpoint.dimension), dtype=np.float32)
        for start in range(0, QUERIES, size):
            chosen = order[start : start + size]
            vectors[chosen] = encoder.encode_queries([queries[row] for row in chosen])
        together = scores(vectors)
        move = np.abs(together[rows, best] - together[rows, second] - lead)
        flips = together.argmax(axis=1) != best
        greatest = max(greatest, float(move.max()))
        print(
            f"batches of {size:2}: mean move {move.mean():.4f}, 99.9 % below {np.quantile(move, 0.999):.4f}, "
            f"greatest {move.max():.4f}; another passage first: {flips.sum()}, whose greatest lead alone was "
            f"{lead[flips].max(initial=0.0):.4f}"
        )
    print(f"greatest move of all: {greatest:.4f}")


if __name__ == "__main__":
    main()
