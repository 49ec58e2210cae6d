"""Every backend of the encoder against an independent torch fp32 computation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from research.config import load_settings
from research.settings import Settings
from services.retriever.encoder.checkpoint import Checkpoint, open_checkpoint
from services.retriever.encoder.encoder import load_encoder
from services.retriever.index.search_index import SearchIndex

BACKENDS = {"torch": 0.99999, "onnx": 0.9999, "onnx-int8": 0.99}


@pytest.fixture(scope="module")
def settings(data_dir: Path) -> Settings:
    return load_settings("quickstart-cpu", [f"paths.data={data_dir}"])


@pytest.fixture(scope="module")
def checkpoint(settings: Settings) -> Checkpoint:
    return open_checkpoint(settings.encoder.name, settings.paths.data)


@pytest.fixture(scope="module")
def queries(data_dir: Path) -> list[str]:
    """Sixty questions' worth of text, of lengths from one word to a paragraph."""
    lines = (data_dir / "corpus" / "wikipedia-leads.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = random.Random(7).sample(lines, 60)
    texts = [json.loads(line)["text"] for line in chosen]
    return [" ".join(text.split()[: 1 + 3 * (number % 12)]) for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint, queries: list[str]) -> NDArray[np.float32]:
    """One by one, without padding, with nothing of the project's encoder."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    model = AutoModel.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for query in queries:
            inputs = tokenizer(f"query: {query}", return_tensors="pt", truncation=True, max_length=128)
            mean = model(**inputs).last_hidden_state[0].mean(dim=0)
            vectors.append((mean / mean.norm()).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_with_torch_fp32(
    backend: str, settings: Settings, checkpoint: Checkpoint, queries: list[str], reference: NDArray[np.float32]
) -> None:
    encoder = load_encoder(checkpoint, settings.encoder, backend, 1, settings.paths.data)
    vectors = encoder.encode_queries(queries)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert (vectors * reference).sum(axis=1).min() > BACKENDS[backend]


def test_int8_queries_find_what_fp32_queries_find(
    settings: Settings, checkpoint: Checkpoint, queries: list[str], reference: NDArray[np.float32]
) -> None:
    index = SearchIndex(settings.corpus.index, settings.index_dir, checkpoint, settings.encoder, threads=1).dense
    encoder = load_encoder(checkpoint, settings.encoder, "onnx-int8", 1, settings.paths.data)
    _, expected = index.search(reference, 5)
    _, found = index.search(encoder.encode_queries(queries), 5)
    shared = [len({*mine} & {*theirs}) / 5 for mine, theirs in zip(found.tolist(), expected.tolist(), strict=True)]
    assert np.mean(shared) > 0.85
    assert (found[:, 0] == expected[:, 0]).mean() > 0.9


def test_passages_are_encoded_with_their_title(settings: Settings, checkpoint: Checkpoint) -> None:
    encoder = load_encoder(checkpoint, settings.encoder, "onnx", 1, settings.paths.data)
    [vector] = encoder.encode_passages([("Paris", "Capital of France.")])
    as_query = settings.encoder.model_copy(update={"query_prefix": "passage: "})
    [same] = load_encoder(checkpoint, as_query, "onnx", 1, settings.paths.data).encode_queries(
        ["Paris Capital of France."]
    )
    np.testing.assert_array_equal(vector, same)
