"""Recall of gold passages on MuSiQue and HotpotQA: by meaning, by words, fused; and what int8 costs.

Run: python -m benchmarks.retriever.quality musique-sample.jsonl hotpotqa-sample.json; needs `research prepare`.
Each file is in its data set's own format. The passages of all its questions, each once, are the pool that is searched;
a question counts by the share of its supporting passages among the first 5 or 10. Differences are paired by question,
with 95 % intervals of 10,000 bootstrap samples. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from research.config import load_settings
from research.questions.gold import GoldQuery, load_gold
from research.scoring.statistics import cluster_bootstrap
from research.settings import Settings
from services.retriever.build.build import build_index
from services.retriever.build.recall import gold_positions, recall_at
from services.retriever.encoder.checkpoint import open_checkpoint
from services.retriever.encoder.encoder import load_encoder
from services.retriever.index.search_index import SearchIndex

DEPTHS = (5, 10)
FULL = "encoder.max_passage_tokens=256"
# Name: backend of the queries, backend of the passages, tokens of a passage.
ENCODINGS = {
    "fp32": ("onnx", "onnx", FULL),
    "int8 queries, fp32 passages": ("onnx-int8", "onnx", FULL),
    "int8": ("onnx-int8", "onnx-int8", FULL),
    "int8, passages cut at 64 tokens (the built-in default)": (
        "onnx-int8",
        "onnx-int8",
        "encoder.max_passage_tokens=64",
    ),
}
Shares = NDArray[np.float64]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, nargs="+")
    for path in parser.parse_args().questions:
        gold = load_gold(path)
        with tempfile.TemporaryDirectory() as scratch:
            pool = Path(scratch) / "pool.jsonl"
            size = write_pool(path, pool)
            print(f"{path.stem}: {len(gold)} questions, {size} passages\n")
            print(table({name: measure(pool, gold, *how) for name, how in ENCODINGS.items()}))


def measure(
    pool: Path, gold: Sequence[GoldQuery], queries: str, passages: str, cut: str
) -> dict[str, dict[int, Shares]]:
    """Recall of each question at each depth: by vectors, by words, and by both."""
    data = Path("data").resolve()
    index_name = f"quality-{pool.parent.name}"
    settings = load_settings(
        overrides=[
            f"paths.data={data}", f"corpus.index={index_name}", "corpus.index_type=flat", "corpus.hybrid=true",
            f"encoder.backend={queries}", f"encoder.passage_backend={passages}", cut, "retriever.threads=2",
        ]
    )  # fmt: skip
    build_index(settings, pool)
    try:
        found = search(settings, gold)
    finally:
        shutil.rmtree(settings.index_dir, ignore_errors=True)
    return found


def search(settings: Settings, gold: Sequence[GoldQuery]) -> dict[str, dict[int, Shares]]:
    """Search for every question in each way."""
    data, threads, deepest = settings.paths.data, settings.retriever.threads, max(DEPTHS)
    checkpoint = open_checkpoint(settings.encoder.name, data)
    index = SearchIndex(settings.corpus.index, settings.index_dir, checkpoint, settings.encoder, threads)
    assert index.lexical is not None
    texts = [query.text for query in gold]
    vectors = load_encoder(checkpoint, settings.encoder, settings.encoder.backend, threads, data).encode_queries(texts)
    ranked = {
        "vectors": index.dense.search(vectors, deepest)[1].tolist(),
        "words (BM25)": index.lexical.search(texts, deepest).tolist(),
        "both, fused": [[place for place, _ in row] for row in index.rank(texts, vectors, deepest)],
    }
    places = gold_positions(index.passages, gold)
    return {
        name: {
            depth: np.array([recall_at([row], [wanted], depth) for row, wanted in zip(rows, places, strict=True)])
            for depth in DEPTHS
        }
        for name, rows in ranked.items()
    }


def table(found: dict[str, dict[str, dict[int, Shares]]]) -> str:
    """Vectors of each encoding, then words and both with fp32; each against vectors in fp32."""
    rows = {f"vectors, {name}": own["vectors"] for name, own in found.items()}
    reference = rows["vectors, fp32"]
    rows |= {name: found["fp32"][name] for name in ("words (BM25)", "both, fused")}
    lines = [
        f"| ranking by | {' | '.join(f'recall@{depth} | − fp32 vectors' for depth in DEPTHS)} |",
        "|---|" + "---|" * (2 * len(DEPTHS)),
    ]
    for name, shares in rows.items():
        cells = []
        for depth in DEPTHS:
            cells.append(f"{shares[depth].mean():.3f}")
            gaps = (shares[depth] - reference[depth]).tolist()
            gain = cluster_bootstrap(gaps, [str(question) for question in range(len(gaps))])
            cells.append(f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if shares is not reference else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def write_pool(questions: Path, pool: Path) -> int:
    """Write each passage of the questions once; returns how many there are."""
    text = questions.read_text(encoding="utf-8")
    records = json.loads(text) if questions.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    passages: dict[tuple[str, str], None] = {}
    for record in records:
        if "paragraphs" in record:
            passages |= dict.fromkeys((own["title"], own["paragraph_text"]) for own in record["paragraphs"])
        else:
            passages |= dict.fromkeys((title, "".join(sentences)) for title, sentences in record["context"])
    with pool.open("w", encoding="utf-8") as lines:
        for number, (title, body) in enumerate(passages):
            lines.write(json.dumps({"id": str(number), "title": title, "text": body}) + "\n")
    return len(passages)


if __name__ == "__main__":
    main()
