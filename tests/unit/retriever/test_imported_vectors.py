"""Vectors of FAISS files that others wrote: read back as they were added, or refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from research.errors import AssetError
from services.retriever.build import imported_vectors
from services.retriever.build.imported_vectors import ImportedVectors, RefusedImportError
from services.retriever.index import vector_index
from services.retriever.index.faiss_config import faiss_config_for
from services.retriever.index.faiss_file import lists_of, open_mapped
from services.retriever.index.vector_index import write_dense
from services.retriever.types import Vectors
from tests.conftest import REPOSITORY
from tests.support.foreign_index import write_index

DIMENSION = 32
COUNT = 2000
# Reads everything there is and prints by how many MiB the most memory that it ever held grew.
READ = """
import sys
from pathlib import Path
from services.retriever.build.imported_vectors import ImportedVectors

def most() -> int:
    # Not ru_maxrss: that begins with the memory of the process that started this one.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) >> 10

warm = ImportedVectors(Path(sys.argv[2]))
assert len(next(iter(warm.parts()))) == 2000
before = most()
vectors = ImportedVectors(Path(sys.argv[1]))
rows = sum(len(part) for part in vectors.parts())
assert rows == len(vectors)
assert len(vectors.sample(1000, seed=0)) == 1000
print(most() - before)
"""


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    rng = np.random.default_rng(3)
    drawn = rng.standard_normal((COUNT, DIMENSION)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 300 vectors, and their pages are let go after each third."""
    monkeypatch.setattr(imported_vectors, "BLOCK_BYTES", 300 * 4 * DIMENSION)
    monkeypatch.setattr(imported_vectors, "_MAPPED_BYTES", 900 * 4 * DIMENSION)


@pytest.mark.parametrize(
    ("factory", "kind", "off"),
    [
        ("Flat", "IndexFlat", 0),
        ("IVF16,Flat", "IndexIVFFlat", 0),
        ("HNSW16,Flat", "IndexHNSWFlat", 0),
        ("IDMap,Flat", "IndexIDMap of IndexFlat", 0),
        ("IDMap2,Flat", "IndexIDMap2 of IndexFlat", 0),
        ("IDMap,IVF16,Flat", "IndexIDMap of IndexIVFFlat", 0),
        ("SQ4,RFlat", "IndexRefineFlat", 0),
        ("SQfp16", "IndexScalarQuantizer", 1e-3),
        ("SQ8", "IndexScalarQuantizer", 5e-3),
        ("IVF16,SQ8", "IndexIVFScalarQuantizer", 5e-3),
        ("HNSW16,SQ8", "IndexHNSWSQ", 5e-3),
    ],
)
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.usefixtures("small_blocks")
def test_vectors_are_given_back_in_order(
    tmp_path: Path, vectors: Vectors, factory: str, kind: str, off: float, metric: int
) -> None:
    found = ImportedVectors(write_index(tmp_path / "their.index", vectors, factory, metric=metric))
    assert found.kind.replace("IndexFlatIP", "IndexFlat").replace("IndexFlatL2", "IndexFlat") == kind
    assert found.whole
    assert (len(found), found.dimension) == (COUNT, DIMENSION)
    assert found.inner_product == (metric == faiss.METRIC_INNER_PRODUCT)
    found.must_be_unit = True
    parts = list(found.parts())
    assert [len(part) for part in parts] == [300] * 6 + [200]
    np.testing.assert_allclose(np.concatenate(parts), vectors, rtol=0, atol=off)
    np.testing.assert_allclose(np.concatenate(list(found.parts(700))), vectors[700:], rtol=0, atol=off)
    drawn = found.sample(50, seed=1)
    nearest = (drawn @ vectors.T).argmax(axis=1)
    assert len(set(nearest.tolist())) == 50, "each is drawn once"
    np.testing.assert_allclose(drawn, vectors[nearest], rtol=0, atol=off)
    assert len(found.sample(COUNT + 5, seed=1)) == COUNT


@pytest.mark.parametrize("factory", ["PQ8x4", "IVF16,PQ8x4", "OPQ8,IVF16,PQ8x4", "SQ4", "HNSW16,PQ8x4"])
def test_codes_are_no_vectors(tmp_path: Path, vectors: Vectors, factory: str) -> None:
    found = ImportedVectors(write_index(tmp_path / "their.index", vectors, factory))
    assert not found.whole
    coarse = found[100:200]
    cosines = np.einsum("nd,nd->n", coarse / np.linalg.norm(coarse, axis=1, keepdims=True), vectors[100:200])
    assert 0.6 < np.median(cosines) < 0.9999


@pytest.mark.parametrize("factory", ["IVF16,PQ8x4fs", "PQ8x4fs", "IVF16,RaBitQ", "LSH", "RQ4x8", "NSG16,Flat"])
def test_what_gives_nothing_back_is_refused_by_name(tmp_path: Path, vectors: Vectors, factory: str) -> None:
    with pytest.raises(AssetError, match=r"their\.index: an Index\w+ does not give its vectors back"):
        ImportedVectors(write_index(tmp_path / "their.index", vectors, factory, metric=faiss.METRIC_L2))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def no_index(path: Path) -> None:
    path.write_bytes(b"\x1f\x8b, not an index" * 100)


@pytest.mark.parametrize(
    "factory", ["Flat", "IVF16,Flat", "HNSW16,Flat", "IDMap,Flat", "IVF16,PQ8x4", "IDMap,IVF16,Flat"]
)
@pytest.mark.parametrize(
    ("damage", "named"), [(cut, "may be cut"), (no_index, "faiss.write_index"), (Path.unlink, "No such")]
)
def test_a_file_that_is_cut_or_another_is_named(
    tmp_path: Path, vectors: Vectors, factory: str, damage: Callable[[Path], None], named: str
) -> None:
    path = write_index(tmp_path / "their.index", vectors, factory)
    damage(path)
    with pytest.raises(AssetError, match=named) as refusal:
        ImportedVectors(path)
    assert str(path) in str(refusal.value)


def with_ids(path: Path, vectors: Vectors, factory: str, ids: np.ndarray) -> Path:
    index = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add_with_ids(vectors, ids)
    faiss.write_index(index, str(path))
    return path


@pytest.mark.parametrize(
    ("factory", "change", "named"),
    [
        ("IDMap,Flat", lambda ids: ids + 1, "the id of vector 0 is 1"),
        ("IDMap,Flat", lambda ids: np.where(ids == 1500, 7, ids), "the id of vector 1500 is 7"),
        ("IVF16,Flat", lambda ids: ids + 1, "its ids go from"),
        ("IVF16,Flat", lambda ids: np.where(ids == 1500, 7, ids), "no vector has the id 1500"),
    ],
)
def test_ids_that_are_no_positions_are_refused(
    tmp_path: Path, vectors: Vectors, factory: str, change: Callable[[np.ndarray], np.ndarray], named: str
) -> None:
    path = with_ids(tmp_path / "their.index", vectors, factory, change(np.arange(COUNT)))
    with pytest.raises(AssetError, match=named) as refusal:
        ImportedVectors(path)
    assert "in that order" in str(refusal.value)


def test_ids_of_lists_may_be_in_any_order(tmp_path: Path, vectors: Vectors) -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    found = ImportedVectors(with_ids(tmp_path / "their.index", vectors[order], "IVF16,Flat", order))
    np.testing.assert_array_equal(found[0:COUNT], vectors)


def test_lists_in_a_file_of_their_own_are_refused(tmp_path: Path, vectors: Vectors) -> None:
    """As faiss.contrib.ondisk makes them."""
    index: Any = faiss.read_index(str(write_index(tmp_path / "small.index", vectors, "IVF16,Flat")))
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(tmp_path / "lists.ivfdata"))
    lists.merge_from(index.invlists, 0)
    index.replace_invlists(lists, False)
    faiss.write_index(index, str(tmp_path / "their.index"))
    with pytest.raises(AssetError, match=r"in another file, .*lists\.ivfdata"):
        ImportedVectors(tmp_path / "their.index")


def test_another_metric_is_refused(tmp_path: Path, vectors: Vectors) -> None:
    path = write_index(tmp_path / "their.index", vectors, metric=faiss.METRIC_L1)
    with pytest.raises(AssetError, match=r"compares vectors by metric 2 of FAISS"):
        ImportedVectors(path)


@pytest.mark.parametrize("length", [1.1, 0.0, np.nan])
def test_a_vector_of_another_length_is_named(tmp_path: Path, vectors: Vectors, length: float) -> None:
    scaled = vectors.copy()
    scaled[1234] *= length
    found = ImportedVectors(write_index(tmp_path / "their.index", scaled))
    assert sum(map(len, found.parts())) == COUNT
    found.must_be_unit = True
    with pytest.raises(AssetError, match=rf"vector 1234 has length {length:.3f}.*--keep"):
        list(found.parts())


@pytest.mark.parametrize("factory", ["Flat", "IDMap2,Flat"])
def test_reading_holds_a_few_blocks_of_a_large_file(tmp_path: Path, vectors: Vectors, factory: str) -> None:
    """Mapped pages count: 300 MB are read, twice, within the 64 MiB that may be mapped and the blocks in work."""
    rng = np.random.default_rng(0)
    many = rng.standard_normal((200_000, 384), dtype=np.float32)
    index = faiss.index_factory(384, factory, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexIDMap):
        index.add_with_ids(many, np.arange(len(many)))
    else:
        index.add(many)
    path = tmp_path / "their.index"
    faiss.write_index(index, str(path))
    small = write_index(tmp_path / "small.index", vectors, factory)
    assert path.stat().st_size > 300e6
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), str(small)], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 120


@pytest.mark.parametrize("factory", ["IDMap2,Flat", "HNSW16,Flat", "IVF16,Flat"])
@pytest.mark.usefixtures("small_blocks")
def test_a_file_is_opened_once_however_much_is_read_of_it(
    tmp_path: Path, vectors: Vectors, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open some takes long: FAISS reads a graph then, and makes a table of the ids of an IDMap2."""
    opened: list[Path] = []

    def counted(path: Path) -> object:
        opened.append(path)
        return open_mapped(path)

    monkeypatch.setattr(imported_vectors, "open_mapped", counted)
    found = ImportedVectors(write_index(tmp_path / "their.index", vectors, factory))
    assert sum(map(len, found.parts())) == COUNT
    assert len(found.sample(50, seed=1)) == 50
    assert len(opened) == 1


def test_lists_are_not_read_ahead_by_threads_that_nobody_set(tmp_path: Path, vectors: Vectors) -> None:
    for factory in ("IVF16,Flat", "IDMap,IVF16,PQ8x4"):
        opened = open_mapped(write_index(tmp_path / "their.index", vectors, factory))
        assert lists_of(opened).prefetch_nthread == 0, factory
        assert opened.search(vectors[:3], 1)[1].shape == (3, 1)


def test_vectors_that_cannot_be_turned_back_are_refused(tmp_path: Path, vectors: Vectors) -> None:
    """FAISS inverts most transformations, not all."""
    found = ImportedVectors(write_index(tmp_path / "their.index", vectors, "ITQ16,Flat"))
    with pytest.raises(RefusedImportError, match=r"their\.index: FAISS cannot give back its vectors"):
        found[0:1]


class Overwritten(ImportedVectors):
    """Another index of the same size is written over it once some blocks are read, of all that are ever read."""

    def __init__(self, path: Path, other: bytes, after: int) -> None:
        super().__init__(path)
        self._other, self._left = other, after

    def parts(self, start: int = 0) -> Iterator[Vectors]:
        for part in super().parts(start):
            self._left -= 1
            if self._left == 0:
                with self.path.open("r+b") as stream:
                    stream.write(self._other)
            yield part


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("after", [2, 9, 14, 18], ids=["training", "filling", "filled", "full vectors"])
def test_lists_are_not_filled_from_two_files(
    tmp_path: Path, vectors: Vectors, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is another for a while, and then the first one again: its checksum would say that all is well."""
    monkeypatch.setattr(vector_index, "KEPT_EVERY", 300)
    structure = faiss_config_for("ivf-sq8", COUNT, DIMENSION)
    whole, again = tmp_path / "whole", tmp_path / "again"
    whole.mkdir()
    again.mkdir()
    path = write_index(tmp_path / "their.index", vectors)
    write_dense(whole, ImportedVectors(path), structure, DIMENSION)
    first = path.read_bytes()
    other = write_index(tmp_path / "other.index", np.ascontiguousarray(vectors[::-1])).read_bytes()
    os.utime(path, (0, 0))  # the clock of a file system may stand still for some milliseconds
    with pytest.raises(RefusedImportError, match=r"their\.index changed while it was read"):
        write_dense(again, Overwritten(path, other, after), structure, DIMENSION, tmp_path)
    path.write_bytes(first)
    write_dense(again, ImportedVectors(path), structure, DIMENSION, tmp_path)
    for file in whole.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
