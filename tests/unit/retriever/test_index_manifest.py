"""An index is opened only by the encoder it was built with, and only if it holds together."""

from __future__ import annotations

import itertools
import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.errors import AssetError, ConfigurationError
from research.passages import Passage
from research.settings.retriever import CorpusConfig, EncoderConfig
from services.retriever.encoder.checkpoint import Checkpoint
from services.retriever.index import search_index
from services.retriever.index.bm25 import write_bm25
from services.retriever.index.faiss_config import faiss_config_for
from services.retriever.index.file_sums import fault_in, seal
from services.retriever.index.manifest import Manifest, read_manifest, recipe_for
from services.retriever.index.passage_store import PassageStore, write_passage_store
from services.retriever.index.search_index import SearchIndex
from services.retriever.index.vector_index import write_dense
from tests.support.many_vectors import InMemory

PASSAGES = [Passage("a", "Alpha", "first — é"), Passage("b", "Beta", "second"), Passage("c", "Gamma", "third")]
ENCODER = EncoderConfig(name="some/e5")
CORPUS = CorpusConfig(name="some.jsonl", index="some")
AXES = np.eye(4, dtype=np.float32)
CHECKPOINT = Checkpoint(
    name="some/e5", directory=Path("x"), dimension=4, heads=2, max_tokens=512, pad_id=0, pooling="mean", digest="d" * 64
)


def write_index(directory: Path, *, lexical: bool = False, sealed: bool = False) -> Path:
    """A small whole index: passage i lies along axis i."""
    structure = faiss_config_for("flat", 3, 4)
    recipe = recipe_for(CHECKPOINT, ENCODER, CORPUS.model_copy(update={"hybrid": lexical}), "c" * 64)
    write_passage_store(directory, PASSAGES)
    write_dense(directory, InMemory(AXES[:3]), structure, 4)
    if lexical:
        write_bm25(directory, [f"{passage.title} {passage.text}" for passage in PASSAGES])
    Manifest(
        revision=recipe.revision,
        recipe=recipe,
        count=3,
        encoder="some/e5",
        build_backend="torch",
        created="2026-01-01T00:00:00+00:00",
        structure=structure,
        milvus=None,
        files=seal(directory) if sealed else None,
    ).write(directory)
    return directory


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_index(tmp_path)


def open_index(directory: Path, checkpoint: Checkpoint = CHECKPOINT, **settings: Any) -> SearchIndex:
    return SearchIndex("some", directory, checkpoint, ENCODER.model_copy(update=settings), threads=1)


def test_a_whole_index_opens_and_finds_as_many_as_each_query_wants(index: Path) -> None:
    opened = open_index(index)
    vectors = np.array([[0.1, 0.2, 0.9, 0], [1, 0, 0, 0]], dtype=np.float32)
    several, _ = opened.search(["x", "y"], vectors, 10)
    _, one = opened.search(["x", "y"], vectors, 1)
    assert [(hit["id"], hit["score"]) for hit in several] == [
        ("c", pytest.approx(0.9)),
        ("b", pytest.approx(0.2)),
        ("a", pytest.approx(0.1)),
    ]
    assert one == [{"id": "a", "title": "Alpha", "text": "first — é", "score": 1.0}]
    assert opened.key == f"some@{opened.manifest.revision}"


def test_with_words_both_rankings_count(tmp_path: Path) -> None:
    opened = open_index(write_index(tmp_path, lexical=True))
    # By meaning c, b, a; by words only b.
    [hits] = opened.search(["seconds of Beta"], np.array([[0.1, 0.2, 0.9, 0]], dtype=np.float32), 2)
    assert [(hit["id"], hit["score"]) for hit in hits] == [("b", 1 / 61 + 1 / 62), ("c", 1 / 61)]


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
    def damage(directory: Path) -> None:
        (directory / name).write_bytes((directory / name).read_bytes()[:-7])

    return damage


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda directory: (directory / "manifest.json").unlink(), "there is no index"),
        (lambda directory: (directory / "manifest.json").write_text("{"), "manifest.json is corrupt"),
        (lambda directory: (directory / "manifest.json").write_text("[]"), "not of index format"),
        (edit_manifest(lambda fields: fields["recipe"].update(format_version=99)), "not of index format"),
        (edit_manifest(lambda fields: fields.pop("recipe")), "not of index format"),
        (edit_manifest(lambda fields: fields.pop("count")), "count: Field required"),
        (edit_manifest(lambda fields: fields["recipe"]["encoding"].update(query_prefix="x")), "was edited"),
        (edit_manifest(lambda fields: fields.update(count=4)), "4 manifest, 3 passages, 3 vectors"),
        (lambda directory: write_dense(directory, InMemory(AXES), faiss_config_for("flat", 4, 4), 4), "4 vectors"),
        (lambda directory: write_passage_store(directory, PASSAGES[:2]), "2 passages"),
        (lambda directory: (directory / "vectors.faiss").unlink(), "cannot read"),
        (cut("vectors.faiss"), "cannot read"),
        (cut("passages.arrow"), "missing or corrupt"),
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
    later = manifest.model_copy(update={"created": "2027-01-01T00:00:00+00:00", "build_backend": "onnx"})
    assert later.recipe.revision == manifest.revision
    for change in ({"corpus_sha256": "0" * 64}, {"structure": "hnsw"}, {"lexical": True}):
        assert manifest.recipe.model_copy(update=change).revision != manifest.revision


def test_the_store_streams_and_survives_replacement(tmp_path: Path) -> None:
    write_passage_store(tmp_path, PASSAGES)
    before = PassageStore(tmp_path)
    write_passage_store(tmp_path, PASSAGES[:1])
    assert len(before) == 3
    assert before.record(2)["title"] == "Gamma"
    assert len(PassageStore(tmp_path)) == 1


def test_positions_count_through_the_batches_of_the_file(tmp_path: Path) -> None:
    write_passage_store(tmp_path, (Passage(str(number), f"t{number}", "x") for number in range(9000)))
    store = PassageStore(tmp_path)
    assert len(store) == 9000
    for position in (0, 4095, 4096, 8191, 8192, 8999):
        assert store.record(position) == {"id": str(position), "title": f"t{position}", "text": "x"}
    write_passage_store(tmp_path, [])
    assert len(PassageStore(tmp_path)) == 0


def zeros(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(bytes((directory / name).stat().st_size))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (zeros("vectors.faiss"), "vectors.faiss has another content"),
        (zeros("passages.arrow"), "passages.arrow has another content"),
        (zeros("lexical/data.csc.index.npy"), "lexical/data.csc.index.npy has another content"),
        (cut("lexical/data.csc.index.npy"), "bytes instead of"),
        (lambda directory: (directory / "lexical" / "vocab.index.json").unlink(), "vocab.index.json is missing"),
    ],
)
def test_a_spoilt_file_is_named_before_anything_is_opened(
    tmp_path: Path, damage: Callable[[Path], object], named: str
) -> None:
    index = write_index(tmp_path, lexical=True, sealed=True)
    open_index(index)
    damage(index)
    with pytest.raises(AssetError, match="the index is spoilt") as refusal:
        open_index(index)
    assert named in str(refusal.value)
    assert "research index" in str(refusal.value)


def test_of_a_file_too_large_to_read_at_every_start_the_size_is_compared(tmp_path: Path) -> None:
    files = read_manifest(write_index(tmp_path, sealed=True)).files
    assert files is not None
    zeros("vectors.faiss")(tmp_path)
    assert fault_in(tmp_path, files, largest_summed=10) is None
    assert "vectors.faiss" in str(fault_in(tmp_path, files, largest_summed=None))


def test_without_descriptors_nobody_is_told_to_build_again(tmp_path: Path) -> None:
    index = write_index(tmp_path, lexical=True, sealed=True)
    open_index(index)  # imports what it needs
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(index, os.O_RDONLY)
    os.close(free)
    told = []
    try:
        for few in itertools.count():
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + few, hard))
            try:
                open_index(index)
                break
            except AssetError as error:
                told.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told
    assert not [text for text in told if "research index" in text]


def test_an_index_that_is_replaced_again_and_again_is_not_tried_for_ever(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes = itertools.count()
    monkeypatch.setattr(search_index, "_inode", lambda _directory: next(inodes))
    with pytest.raises(AssetError, match="again and again"):
        SearchIndex.open("some", index, CHECKPOINT, ENCODER, threads=1)


def test_an_imported_index_is_what_a_build_over_the_same_passages_asks_for(index: Path) -> None:
    """Or `research prepare` would embed millions of passages anew."""
    built = read_manifest(index).recipe
    imported = built.model_copy(update={"imported_sha256": "f" * 64, "structure": "kept"})
    assert imported.covers(built)
    assert imported.covers(
        recipe_for(CHECKPOINT, ENCODER.model_copy(update={"max_passage_tokens": 99}), CORPUS, "c" * 64)
    )
    assert not built.covers(imported)
    assert not imported.covers(imported.model_copy(update={"imported_sha256": "e" * 64}))
    for change in ({"corpus_sha256": "0" * 64}, {"lexical": True}):
        assert not imported.covers(built.model_copy(update=change))
    other = built.encoding.model_copy(update={"passage_prefix": ""})
    assert not imported.covers(built.model_copy(update={"encoding": other}))


def test_what_is_not_imported_says_nothing_of_it(index: Path) -> None:
    """So that revisions from before stay what they were, and older programs read newer indexes."""
    assert "imported" not in (index / "manifest.json").read_text()
