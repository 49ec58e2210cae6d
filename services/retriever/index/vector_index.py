"""Vector search: a FAISS structure on disk, and the full vectors beside a structure that compresses them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from research.atomic_io import atomic_write, to_disk
from research.errors import AssetError
from services.process.progress import progress
from services.retriever.index.faiss_config import HNSW_EF_CONSTRUCTION, KEPT, FaissConfig
from services.retriever.index.faiss_file import open_mapped
from services.retriever.index.file_sums import REPAIR, advice
from services.retriever.types import Vectors

VECTORS = "vectors.faiss"
FULL_VECTORS = "vectors.f16.npy"
# Vectors that are added anew after a kill, at most: minutes of work. Each time all lists so far are written.
KEPT_EVERY = 2**20


# Queries times dimensions from which FAISS multiplies matrices instead of scanning the vectors query by query. Its
# default of 128,000 is far too high: with 10,033 vectors of 384 dimensions matrices pay off from 8 queries on, and a
# query in a batch of 64 takes two fifths of the time.
faiss.cvar.distance_compute_blas_threshold = 3000

Positions = NDArray[np.int64]


class VectorIndex(Protocol):
    """Finds the nearest of the vectors that it holds. Not to be called from two threads at once."""

    @property
    def count(self) -> int: ...

    @property
    def dimension(self) -> int: ...

    def search(self, vectors: Vectors, top_k: int) -> tuple[Vectors, Positions]:
        """Find the nearest of unit vectors, float32 [queries, dimension].

        Returns:
            Scores and positions, best first, both [queries, top_k]. Where fewer were found, positions end with -1.
        """
        ...


class FaissVectors:
    """A FAISS structure, memory-mapped as far as it allows.

    Raises:
        AssetError: the file is missing or corrupt.
    """

    def __init__(self, directory: Path, structure: FaissConfig, threads: int) -> None:
        path = directory / VECTORS
        try:
            index: Any = (
                open_mapped(path) if structure.name == KEPT else faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            )
        except RuntimeError as error:
            raise AssetError(f"cannot read {path}; {advice(error)} ({error})") from error
        self._threads = threads
        if structure.probes:
            index.nprobe = structure.probes
        if structure.ef_search:
            index.hnsw.efSearch = structure.ef_search
        self._index = index
        # Of kept ones only: what we build compares inner products.
        self._squared_distances = index.metric_type == faiss.METRIC_L2

    @property
    def count(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        return int(self._index.d)

    def search(self, vectors: Vectors, top_k: int) -> tuple[Vectors, Positions]:
        """Find the nearest; see `VectorIndex.search`."""
        # The OpenMP setting belongs to the calling thread.
        faiss.omp_set_num_threads(self._threads)
        scores, positions = self._index.search(vectors, min(top_k, self.count))
        # Of unit vectors, which an index with distances must have to be kept.
        return (1 - scores / 2 if self._squared_distances else scores), positions


class RerankedIndex:
    """Candidates of a coarse structure, reranked by their full vectors, which stay on disk."""

    def __init__(self, coarse: FaissVectors, directory: Path, factor: int) -> None:
        try:
            self._full: NDArray[np.float16] = np.load(directory / FULL_VECTORS, mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise AssetError(f"cannot read {directory / FULL_VECTORS}; {advice(error)} ({error})") from error
        if self._full.shape != (coarse.count, coarse.dimension):
            raise AssetError(f"{directory / FULL_VECTORS} does not fit {VECTORS}; {REPAIR}")
        self._coarse = coarse
        self._factor = factor
        self.count, self.dimension = coarse.count, coarse.dimension

    def search(self, vectors: Vectors, top_k: int) -> tuple[Vectors, Positions]:
        """Find the nearest; see `VectorIndex.search`."""
        _, candidates = self._coarse.search(vectors, top_k * self._factor)
        return rerank(vectors, candidates, self._full, min(top_k, self.count))


def rerank(vectors: Vectors, candidates: Positions, full: NDArray[np.float16], top_k: int) -> tuple[Vectors, Positions]:
    """Order each query's candidates by inner product with their full vectors.

    Args:
        vectors: float32 [queries, dimension].
        candidates: positions [queries, n]; -1 where there is none.
        full: [count, dimension], may be memory-mapped: only the candidates' rows are read.
        top_k: at most n.

    Returns:
        Scores and positions, best first, both [queries, top_k]; score -inf and position -1 where there is none.
    """
    # In order of position, so that the disk is read forward; each row once, however many queries share it.
    wanted, places = np.unique(np.maximum(candidates, 0), return_inverse=True)
    rows = full[wanted].astype(np.float32)[places.reshape(candidates.shape)]
    scores = np.einsum("qd,qnd->qn", vectors, rows)
    scores[candidates < 0] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(candidates, best, axis=1)


def open_dense(directory: Path, structure: FaissConfig, threads: int) -> VectorIndex:
    """Open the vectors of an index.

    Raises:
        AssetError: a file is missing or corrupt, or the files do not match.
    """
    coarse = FaissVectors(directory, structure, threads)
    return RerankedIndex(coarse, directory, structure.rerank) if structure.rerank else coarse


class VectorSource(Protocol):
    """Vectors that need not fit in memory, in parts of float32 [rows, dimension]."""

    def __len__(self) -> int: ...

    def parts(self, start: int = 0) -> Iterator[Vectors]:
        """All of them from a position on, in order."""
        ...

    def sample(self, count: int, seed: int) -> Vectors:
        """Draw `count` of them, or all if there are fewer."""
        ...


def write_dense(
    directory: Path, vectors: VectorSource, structure: FaissConfig, dimension: int, unfinished: Path | None = None
) -> None:
    """Train, fill and write a structure, and the full vectors beside it; the same input gives the same files.

    Lists of many millions take hours to fill, so what is filled so far is kept in the folder `unfinished`, and the same
    call continues from there.

    Raises:
        AssetError: FAISS cannot write a file.
    """
    kept = _filling(unfinished, structure) if unfinished and structure.lists else None
    index = _resumed(kept) if kept and kept.is_file() else None
    if index is None:
        index = _trained(vectors, structure, dimension, kept)
    with progress("adding", "vectors", total=len(vectors), done=index.ntotal) as advance:
        for part in vectors.parts(index.ntotal):
            index.add(part)
            advance(len(part))
            if kept and index.ntotal // KEPT_EVERY > (index.ntotal - len(part)) // KEPT_EVERY:
                _keep(index, kept)
    _write(index, directory / VECTORS)
    if structure.name != "flat":
        _write_full(directory / FULL_VECTORS, vectors, dimension)


def _trained(vectors: VectorSource, structure: FaissConfig, dimension: int, kept: Path | None) -> Any:
    index: Any = faiss.index_factory(dimension, structure.factory, faiss.METRIC_INNER_PRODUCT)
    if structure.ef_search:
        index.hnsw.efConstruction = HNSW_EF_CONSTRUCTION
    if not index.is_trained:
        index.train(vectors.sample(structure.training_vectors, seed=0))
    if kept:
        _keep(index, kept)
    return index


def _filling(folder: Path, structure: FaissConfig) -> Path:
    """Where lists are kept while they are filled. What another structure or FAISS began gives other files."""
    path = folder / f"filling-{faiss.__version__}-{structure.factory}.faiss"
    for other in folder.glob("filling-*.faiss"):
        if other != path:
            other.unlink()
    return path


def _resumed(path: Path) -> Any:
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        print(f"cannot read {path} ({error}); the lists are filled anew", file=sys.stderr, flush=True)
        path.unlink()
        return None


def _keep(index: Any, path: Path) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        _write(index, partial)
        to_disk(partial)
        partial.replace(path)
        to_disk(path.parent)
    except (AssetError, OSError) as error:
        # The index itself may have room. After a kill, its lists are filled from where they were kept before.
        print(f"{error}; the build goes on without keeping its lists", file=sys.stderr, flush=True)
        partial.unlink(missing_ok=True)


def _write(index: Any, path: Path) -> None:
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise AssetError(f"cannot write {path} ({error}); make room on that disk") from error


def _write_full(path: Path, vectors: VectorSource, dimension: int) -> None:
    # Of a killed build: beside it, the new ones would need the room twice.
    path.unlink(missing_ok=True)
    # Not through a mapping, whose pages would count as memory of this process.
    with atomic_write(path) as out, progress("writing", "full vectors", total=len(vectors)) as advance:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(vectors), dimension)}
        np.lib.format.write_array_header_1_0(out, header)  # type: ignore[no-untyped-call]
        for part in vectors.parts():
            out.write(part.astype(np.float16).tobytes())
            advance(len(part))
