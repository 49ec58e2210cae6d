"""An index is opened only by the encoder it was built with, and only if it holds together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research import config
from research.errors import AssetError, ConfigurationError
from research.passages import Passage
from services.retriever.checkpoint import Checkpoint
from services.retriever.index import SearchIndex, write_vectors
from services.retriever.manifest import Manifest, read_manifest, recipe_for
from services.retriever.passage_store import PassageStore, write_passage_store

PASSAGES = [Passage("a", "Alpha", "first — é"), Passage("b", "Beta", "second"), Passage("c", "Gamma", "third")]
ENCODER = config.Encoder(name="some/e5")
CHECKPOINT = Checkpoint(
    name="some/e5", directory=Path("x"), dimension=4, heads=2, max_tokens=512, pad_id=0, pooling="mean", digest="d" * 64
)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A small whole index: passage i lies along axis i."""
    write_passage_store(tmp_path, PASSAGES)
    write_vectors(tmp_path, [np.eye(4, dtype=np.float32)[:2], np.eye(4, dtype=np.float32)[2:3]], 4)
    manifest = Manifest(recipe_for(CHECKPOINT, ENCODER, "c" * 64), 3, "some/e5", "torch", "2026-01-01T00:00:00+00:00")
    manifest.write(tmp_path)
    return tmp_path


def open_index(directory: Path, checkpoint: Checkpoint = CHECKPOINT, **settings: Any) -> SearchIndex:
    return SearchIndex(directory, checkpoint, ENCODER.model_copy(update=settings), threads=1)


def test_a_whole_index_opens_and_finds(index: Path) -> None:
    opened = open_index(index)
    scores, positions = opened.search(np.array([[0.1, 0.2, 0.9, 0]], dtype=np.float32), top_k=10)
    assert positions.tolist() == [[2, 1, 0]]
    assert scores[0] == pytest.approx([0.9, 0.2, 0.1])
    assert opened.passages.record(0) == {"id": "a", "title": "Alpha", "text": "first — é"}


@pytest.mark.parametrize(
    ("checkpoint", "settings", "named"),
    [
        ({"digest": "e" * 64, "name": "other/e5"}, {}, "some/e5 (dddddddddddd) instead of other/e5 (eeeeeeeeeeee)"),
        ({"dimension": 8}, {}, "dimension 4 instead of 8"),
        ({"pooling": "cls"}, {}, "pooling 'mean' instead of 'cls'"),
        ({}, {"query_prefix": ""}, "query_prefix 'query: ' instead of ''"),
        ({}, {"passage_prefix": "p: "}, "passage_prefix 'passage: ' instead of 'p: '"),
    ],
)
def test_another_encoder_is_refused_by_name(
    index: Path, checkpoint: dict[str, Any], settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        open_index(index, replace(CHECKPOINT, **checkpoint), **settings)
    assert named in str(refusal.value)
    assert "research index" in str(refusal.value)


@pytest.mark.parametrize(
    ("checkpoint", "settings"),
    [({"name": "/models/some-e5"}, {}), ({}, {"backend": "onnx-int8"}), ({}, {"max_query_tokens": 64})],
)
def test_what_does_not_change_the_vectors_is_allowed(
    index: Path, checkpoint: dict[str, Any], settings: dict[str, Any]
) -> None:
    open_index(index, replace(CHECKPOINT, **checkpoint), **settings)


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / "manifest.json"
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:-7]) and None


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda directory: (directory / "manifest.json").unlink(), "there is no index"),
        (lambda directory: (directory / "manifest.json").write_text("{"), "manifest.json is broken"),
        (lambda directory: (directory / "manifest.json").write_text("[]"), "not of index format"),
        (edit_manifest(lambda fields: fields.update(format_version=99)), "not of index format"),
        (edit_manifest(lambda fields: fields.pop("count")), "lacks 'count'"),
        (edit_manifest(lambda fields: fields.update(query_prefix="x")), "was edited"),
        (edit_manifest(lambda fields: fields.update(count=4)), "3 passages, 4 in the manifest"),
        (lambda directory: write_vectors(directory, [np.eye(4, dtype=np.float32)], 4), "4 vectors"),
        (lambda directory: write_passage_store(directory, PASSAGES[:2]), "2 passages"),
        (lambda directory: (directory / "vectors.faiss").unlink(), "cannot read"),
        (cut("vectors.faiss"), "cannot read"),
        (cut("passages.jsonl"), "does not fit"),
        (cut("offsets.npy"), "missing or broken"),
    ],
)
def test_a_damaged_index_is_refused_with_the_fix(index: Path, damage: Callable[[Path], None], named: str) -> None:
    damage(index)
    with pytest.raises(AssetError) as refusal:
        open_index(index)
    assert named in str(refusal.value)
    assert "research index" in str(refusal.value)


def test_the_revision_names_the_recipe_and_nothing_else(index: Path) -> None:
    manifest = read_manifest(index)
    later = replace(manifest, created="2027-01-01T00:00:00+00:00", build_backend="onnx")
    assert later.recipe.revision == manifest.recipe.revision
    other_corpus = replace(manifest.recipe, corpus_sha256="0" * 64)
    assert other_corpus.revision != manifest.recipe.revision


def test_the_store_streams_and_survives_replacement(tmp_path: Path) -> None:
    write_passage_store(tmp_path, PASSAGES)
    before = PassageStore(tmp_path)
    write_passage_store(tmp_path, PASSAGES[:1])
    assert len(before) == 3
    assert before.record(2)["title"] == "Gamma"
    assert len(PassageStore(tmp_path)) == 1
