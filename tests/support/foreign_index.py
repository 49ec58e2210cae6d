"""FAISS indexes as other projects make them: by transformers and FAISS alone, with nothing of ours."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np

from research.passages import iter_passages
from services.retriever.types import Vectors

# Short passages: what is tested does not depend on their length, the time does.
TOKENS = 24
_SEARCH = """
import json, sys
import faiss, numpy
faiss.omp_set_num_threads(1)
index, queries = faiss.read_index(sys.argv[1]), numpy.load(sys.argv[2])
found = [index.search(query[None], int(sys.argv[3])) for query in queries]
print(json.dumps([[ids[0].tolist(), scores[0].astype(float).tolist()] for scores, ids in found]))
"""


@dataclass(frozen=True)
class Foreign:
    """Passages in the form of wiki-18, and their vectors as Search-R1's index builder makes them."""

    passages: Path
    vectors: Vectors

    def write(self, path: Path, factory: str = "Flat", *, metric: int = faiss.METRIC_INNER_PRODUCT) -> Path:
        """An index of these vectors."""
        return write_index(path, self.vectors, factory, metric=metric)


def write_index(
    path: Path, vectors: Vectors, factory: str = "Flat", *, metric: int = faiss.METRIC_INNER_PRODUCT
) -> Path:
    """As `faiss.index_factory` makes it; of lists it searches four."""
    # On a busy machine two threads wait for each other at each of thousands of tiny products.
    faiss.omp_set_num_threads(1)
    index = faiss.index_factory(vectors.shape[1], factory, metric)
    if factory.startswith("OPQ"):
        # A rotation that is learned well takes a minute, and nothing here depends on it.
        rotation: Any = faiss.downcast_VectorTransform(cast(Any, index).chain.at(0))
        rotation.niter = rotation.niter_pq_0 = rotation.niter_pq = 1
    index.train(vectors)
    if isinstance(index, faiss.IndexIDMap):
        index.add_with_ids(vectors, np.arange(len(vectors)))
    else:
        index.add(vectors)
    if (ivf := faiss.try_extract_index_ivf(index)) is not None:
        ivf.nprobe = 4
    faiss.write_index(index, str(path))
    return path


def make_foreign(data: Path, directory: Path, count: int) -> Foreign:
    """The first passages of the built-in corpus."""
    rows = [
        {"id": str(number), "contents": f'"{passage.title}"\n{passage.text}'}
        for number, passage in enumerate(islice(iter_passages(data / "corpus" / "wikipedia-leads.jsonl"), count))
    ]
    passages = directory / "wiki-18.jsonl.gz"
    passages.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return Foreign(passages, embed(data, ["passage: " + row["contents"] for row in rows]))


def embed(data: Path, texts: Sequence[str], pooling: str = "mean") -> Vectors:
    """Unit vectors of the built-in encoder."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    directory = data / "models" / "multilingual-e5-small-enpt"
    pad = json.loads((directory / "config.json").read_text())["pad_token_id"]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(pad_id=pad)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    parts = []
    for start in range(0, len(texts), 64):
        encoded = tokenizer.encode_batch(list(texts[start : start + 64]))
        ids = torch.tensor([each.ids for each in encoded])
        mask = torch.tensor([each.attention_mask for each in encoded])
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = states.masked_fill(~mask[..., None].bool(), 0.0)
        pooled = states[:, 0] if pooling == "cls" else kept.sum(dim=1) / mask.sum(dim=1)[..., None]
        parts.append(torch.nn.functional.normalize(pooled, dim=-1).numpy())
    return np.concatenate(parts).astype(np.float32)


def searched(index: Path, queries: Vectors, top_k: int) -> list[tuple[list[int], list[float]]]:
    """What FAISS itself finds, query by query, in a process without any setting of ours: ids and scores."""
    saved = index.with_suffix(".queries.npy")
    np.save(saved, queries)
    command = [sys.executable, "-c", _SEARCH, str(index), str(saved), str(top_k)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: list[Any] = json.loads(output)
    return [(ids, scores) for ids, scores in found]
