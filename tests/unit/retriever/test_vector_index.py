"""Every structure against brute force."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from research.errors import AssetError, ConfigurationError
from services.retriever.index import vector_index
from services.retriever.index.faiss_config import FaissConfig, FaissConfigName, faiss_config_for
from services.retriever.index.milvus import MilvusCollection, MilvusVectors, write_milvus
from services.retriever.index.vector_index import FULL_VECTORS, VECTORS, open_dense, rerank, write_dense
from services.retriever.types import Vectors
from tests.support.many_vectors import InMemory

DIMENSION = 64


def unit(vectors: Any) -> Vectors:
    normed: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return normed


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """Three thousand around a hundred centres, as texts about a hundred topics would lie."""
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((100, DIMENSION))
    return unit(np.repeat(centres, 30, axis=0) + 0.6 * rng.standard_normal((3000, DIMENSION)))


@pytest.fixture(scope="module")
def queries(vectors: Vectors) -> Vectors:
    rng = np.random.default_rng(8)
    return unit(vectors[rng.permutation(3000)[:40]] + 0.05 * rng.standard_normal((40, DIMENSION)).astype(np.float32))


def recall(found: np.ndarray, queries: Vectors, vectors: Vectors) -> float:
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, : found.shape[1]]
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)]))


@pytest.mark.parametrize(
    ("name", "least"), [("flat", 1.0), ("hnsw", 0.95), ("ivf-sq8", 0.9), ("ivf-pq", 0.9), ("ivf-rabitq", 0.9)]
)
def test_a_structure_finds_nearly_what_brute_force_finds(
    tmp_path: Path, vectors: Vectors, queries: Vectors, name: FaissConfigName, least: float
) -> None:
    structure = faiss_config_for(name, len(vectors), DIMENSION)
    write_dense(tmp_path, InMemory(vectors), structure, DIMENSION)
    opened = open_dense(tmp_path, structure, threads=1)
    assert (opened.count, opened.dimension) == (3000, DIMENSION)
    scores, positions = opened.search(queries, 5)
    assert recall(positions, queries, vectors) >= least
    assert (np.diff(scores, axis=1) <= 0).all()
    if name == "flat" or structure.rerank:
        exact = np.take_along_axis(queries @ vectors.T, positions, axis=1)
        np.testing.assert_allclose(scores, exact, atol=1e-3)


@pytest.mark.parametrize("name", ["flat", "ivf-sq8", "ivf-pq", "ivf-rabitq"])
def test_the_same_vectors_give_the_same_files(tmp_path: Path, vectors: Vectors, name: FaissConfigName) -> None:
    structure = faiss_config_for(name, len(vectors), DIMENSION)
    for copy in ("one", "two"):
        (tmp_path / copy).mkdir()
        write_dense(tmp_path / copy, InMemory(vectors), structure, DIMENSION)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_more_are_asked_for_than_there_are(tmp_path: Path, vectors: Vectors) -> None:
    structure = faiss_config_for("ivf-pq", 700, DIMENSION)
    write_dense(tmp_path, InMemory(vectors[:700]), structure, DIMENSION)
    scores, positions = open_dense(tmp_path, structure, threads=1).search(vectors[:2], 900)
    assert scores.shape == positions.shape == (2, 700)
    assert positions.min() >= -1


def test_full_vectors_that_do_not_fit_are_refused(tmp_path: Path, vectors: Vectors) -> None:
    structure = faiss_config_for("ivf-pq", 700, DIMENSION)
    write_dense(tmp_path, InMemory(vectors[:700]), structure, DIMENSION)
    np.save(tmp_path / FULL_VECTORS, np.zeros((2, DIMENSION), dtype=np.float16))
    with pytest.raises(AssetError, match=f"does not fit {VECTORS}"):
        open_dense(tmp_path, structure, threads=1)
    (tmp_path / FULL_VECTORS).unlink()
    with pytest.raises(AssetError, match="cannot read"):
        open_dense(tmp_path, structure, threads=1)


def test_the_size_decides_where_nothing_else_does() -> None:
    names = [faiss_config_for("auto", count, 384).name for count in (1, 200_000, 200_001, 2_000_001)]
    assert names == ["flat", "flat", "hnsw", "ivf-rabitq"]


@given(
    full=arrays(np.float16, (12, 4), elements=st.floats(-1, 1, width=16)),
    candidates=arrays(np.int64, (3, 6), elements=st.integers(-1, 11)),
    top_k=st.integers(1, 6),
)
def test_reranking_is_sorting_by_inner_product(full: np.ndarray, candidates: np.ndarray, top_k: int) -> None:
    vectors = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    scores, positions = rerank(vectors, candidates, full, top_k)
    assert scores.shape == positions.shape == (3, top_k)
    for query, own, found, found_scores in zip(vectors, candidates, positions, scores, strict=True):
        products = [float(query @ full[c].astype(np.float32)) if c >= 0 else -np.inf for c in own]
        np.testing.assert_allclose(found_scores, sorted(products, reverse=True)[:top_k], atol=1e-6)
        for position, score in zip(found, found_scores, strict=True):
            assert (position == -1) == (score == -np.inf)
            if position >= 0:
                assert score == pytest.approx(float(query @ full[position].astype(np.float32)), abs=1e-6)


def test_milvus_finds_what_flat_finds(tmp_path: Path, vectors: Vectors, queries: Vectors) -> None:
    where = MilvusCollection(str(tmp_path / "vectors.db"), "some")
    write_milvus(where, InMemory(vectors[:500], rows=300).parts(), DIMENSION, exact=True)
    write_milvus(where, InMemory(vectors, rows=1300).parts(), DIMENSION, exact=True)  # replaces what a kill left
    opened = MilvusVectors(where)
    assert (opened.count, opened.dimension) == (3000, DIMENSION)
    scores, positions = opened.search(queries, 5)
    assert recall(positions, queries, vectors) == 1.0
    np.testing.assert_allclose(scores, np.sort(queries @ vectors.T, axis=1)[:, :-6:-1], atol=1e-5)


def test_a_milvus_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"(?s)cannot open the Milvus collection 'none' .*research index"):
        MilvusVectors(MilvusCollection(str(tmp_path / "vectors.db"), "none"))


@pytest.mark.parametrize(
    ("name", "count", "dimension", "named"),
    [("ivf-pq", 499, 64, "too few"), ("ivf-rabitq", 16, 64, "too few"), ("ivf-pq", 5000, 30, "groups of four")],
)
def test_what_cannot_be_built_is_refused_before_anything_is_encoded(
    name: FaissConfigName, count: int, dimension: int, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        faiss_config_for(name, count, dimension)


def unbroken(folder: Path, vectors: Vectors, structure: FaissConfig) -> Path:
    """The files of a build that nothing interrupts."""
    whole = folder / "whole"
    whole.mkdir()
    write_dense(whole, InMemory(vectors), structure, DIMENSION)
    return whole


def assert_same_files(whole: Path, other: Path) -> None:
    for file in whole.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


class Broken(InMemory):
    """Ends as a kill would, once it has given so many vectors; counts what was asked for."""

    def __init__(self, vectors: Vectors, ends_after: int | None) -> None:
        super().__init__(vectors)
        self.ends_after = ends_after
        self.samples = 0
        self.starts: list[int] = []

    def parts(self, start: int = 0) -> Iterator[Vectors]:
        self.starts.append(start)
        given = start
        for part in super().parts(start):
            if self.ends_after is not None and given >= self.ends_after:
                raise KeyboardInterrupt
            yield part
            given += len(part)

    def sample(self, count: int, seed: int) -> Vectors:
        self.samples += 1
        return super().sample(count, seed)


@pytest.mark.parametrize("name", ["ivf-sq8", "ivf-pq", "ivf-rabitq"])
@pytest.mark.parametrize("ends_after", [0, 900, 2500])
def test_lists_that_are_half_filled_are_filled_to_the_end(
    tmp_path: Path, vectors: Vectors, name: FaissConfigName, ends_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "KEPT_EVERY", 700)
    structure = faiss_config_for(name, len(vectors), DIMENSION)
    whole, killed = unbroken(tmp_path, vectors, structure), tmp_path / "killed"
    killed.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_dense(killed, Broken(vectors, ends_after), structure, DIMENSION, tmp_path)
    rest = Broken(vectors, None)
    write_dense(killed, rest, structure, DIMENSION, tmp_path)
    assert rest.samples == 0, "it is not trained again"
    assert ends_after - 700 - 256 < rest.starts[0] <= max(0, ends_after)
    assert_same_files(whole, killed)


@pytest.mark.parametrize("spoil", ["cut", "another structure", "another FAISS"])
def test_lists_that_are_of_no_use_are_filled_anew(
    tmp_path: Path, vectors: Vectors, spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "KEPT_EVERY", 700)
    structure = faiss_config_for("ivf-sq8", len(vectors), DIMENSION)
    whole, again = unbroken(tmp_path, vectors, structure), tmp_path / "again"
    again.mkdir()
    begun = replace(structure, factory="IVF16,SQ4") if spoil == "another structure" else structure
    with monkeypatch.context() as patched:
        if spoil == "another FAISS":
            patched.setattr(faiss, "__version__", "1.0.0")
        with pytest.raises(KeyboardInterrupt):
            write_dense(again, Broken(vectors, 900), begun, DIMENSION, tmp_path)
    [filling] = tmp_path.glob("filling-*.faiss")
    if spoil == "cut":
        filling.write_bytes(filling.read_bytes()[:-1000])
    rest = Broken(vectors, None)
    write_dense(again, rest, structure, DIMENSION, tmp_path)
    assert (rest.samples, rest.starts[0]) == (1, 0)
    assert len(list(tmp_path.glob("filling-*.faiss"))) == 1, "what is of no use takes no room"
    assert_same_files(whole, again)


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process may grow beyond 20,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Narrow(InMemory):
    """While they are given for the first time there is no room for a file, as on a disk that is full for a time."""

    first = True

    def parts(self, start: int = 0) -> Iterator[Vectors]:
        if not self.first:
            yield from super().parts(start)
            return
        self.first = False
        with no_room():
            yield from super().parts(start)


def test_a_disk_without_room_for_unfinished_lists_does_not_end_a_build(
    tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vector_index, "KEPT_EVERY", 700)
    structure = faiss_config_for("ivf-sq8", len(vectors), DIMENSION)
    whole, narrow = unbroken(tmp_path, vectors, structure), tmp_path / "narrow"
    narrow.mkdir()
    write_dense(narrow, Narrow(vectors), structure, DIMENSION, tmp_path)
    assert "the build goes on without keeping its lists" in capfd.readouterr().err
    assert not list(tmp_path.glob("*.partial"))
    assert_same_files(whole, narrow)


def test_an_index_that_a_disk_has_no_room_for_is_named(tmp_path: Path, vectors: Vectors) -> None:
    structure = faiss_config_for("flat", len(vectors), DIMENSION)
    with no_room(), pytest.raises(AssetError, match=r"cannot write .*vectors\.faiss .*make room"):
        write_dense(tmp_path, InMemory(vectors), structure, DIMENSION)


def test_full_vectors_of_a_killed_build_make_room_for_the_new_ones(tmp_path: Path, vectors: Vectors) -> None:
    taken = []

    class Watched(InMemory):
        def parts(self, start: int = 0) -> Iterator[Vectors]:
            for part in super().parts(start):
                yield part
                taken.append(sum(path.stat().st_size for path in tmp_path.glob(f"{FULL_VECTORS}*")))

    structure = faiss_config_for("ivf-sq8", len(vectors), DIMENSION)
    for _ in range(2):
        write_dense(tmp_path, Watched(vectors), structure, DIMENSION)
    assert max(taken) == (tmp_path / FULL_VECTORS).stat().st_size
