"""The vectors of a FAISS file that somebody else built, read in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from research.errors import AssetError
from services.process.progress import progress
from services.retriever.index.faiss_file import let_go, lists_of, open_mapped
from services.retriever.types import Vectors

# The most vectors in memory at a time.
BLOCK_BYTES = 16 * 2**20
# What is read of the file before its pages are let go, so that they do not count as memory of this process.
_MAPPED_BYTES = 64 * 2**20
_IDS = 2**20
# How far the length of a unit vector may be from 1. Half precision and bytes move it by less.
_TOLERANCE = 0.02

_FULL = (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat, faiss.IndexRefineFlat)
_SCALAR = (faiss.IndexScalarQuantizer, faiss.IndexIVFScalarQuantizer)
# Of other kinds FAISS may end the process instead of saying that it cannot: of lists for a fast scan, for one.
_READABLE = (*_FULL, *_SCALAR, faiss.IndexPQ, faiss.IndexIVFPQ)
# A byte per dimension and more: what is lost moves no ranking that matters.
_FINE = {
    faiss.ScalarQuantizer.QT_8bit,
    faiss.ScalarQuantizer.QT_8bit_uniform,
    faiss.ScalarQuantizer.QT_fp16,
    faiss.ScalarQuantizer.QT_bf16,
}

NOT_UNIT = "our encoders give vectors of length 1, and rank passages by others otherwise"
_NO_POSITIONS = (
    "ids must be the numbers of the passages in their file, from 0 on without a gap; write the index anew with the "
    "vectors in that order"
)


class RefusedImportError(AssetError):
    """What is imported is not what it must be: work that was begun from it is of no use."""


class ImportedVectors:
    """The vectors of a FAISS index in order of position, as `VectorSource`; `vectors[a:b]` reads some of them.

    Attributes:
        kind: the class of the index in FAISS, and that of the index whose ids it maps.
        whole: whether it gives its vectors back; codes give back what they stand for, which is coarser.
        inner_product: it compares inner products, not squared distances.
        exact: searched as it is, it compares a query with every vector by inner product.
        dimension: of the vectors.
        must_be_unit: whether to refuse vectors that are not of length 1.

    Raises:
        AssetError: the file is missing, cut or no FAISS index; does not give its vectors back; compares by anything
            else; or its ids are not the positions of its vectors, which are all that connects it with passages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.must_be_unit = False
        self._before = _signature(path)
        self._outer, self._index = self._open()
        self._unread = _MAPPED_BYTES
        self.dimension = int(self._outer.d)
        self.kind = " of ".join(dict.fromkeys(type(index).__name__ for index in (self._outer, self._index)))
        if not isinstance(_holder(self._index), _READABLE):
            raise AssetError(
                f"{path}: an {self.kind} does not give its vectors back, so they cannot be checked; import the index "
                "that it was made from, or embed the passages with `research index` without --import"
            )
        self.whole = _is_whole(self._index)
        self.inner_product = self._outer.metric_type == faiss.METRIC_INNER_PRODUCT
        if not self.inner_product and self._outer.metric_type != faiss.METRIC_L2:
            raise AssetError(
                f"{path} compares vectors by metric {self._outer.metric_type} of FAISS; only inner products "
                "(METRIC_INNER_PRODUCT) and distances (METRIC_L2) of unit vectors rank as our encoders mean it"
            )
        self.exact = self.inner_product and isinstance(self._index, faiss.IndexFlat)
        self._rows = max(1, BLOCK_BYTES // (4 * self.dimension))
        self._check_ids()

    def __len__(self) -> int:
        return int(self._outer.ntotal)

    def __getitem__(self, positions: slice) -> Vectors:
        """Read float32 [rows, dimension] from one position to before another.

        Raises:
            RefusedImportError: a vector is not of the length that it must have, FAISS cannot give it back, or the file
                is another than the one that was opened.
        """
        start, end, _ = positions.indices(len(self))
        size = (end - start) * 4 * self.dimension
        if self._unread < size:
            let_go(self.path)
            self._unread = _MAPPED_BYTES
        self._unread -= size
        try:
            vectors: Vectors = self._index.reconstruct_n(start, end - start)
        except RuntimeError as error:
            raise RefusedImportError(f"{self.path}: FAISS cannot give back its vectors ({error})") from error
        # After each block: what lists are filled with, and kept for the next try, is of one file.
        self.refuse_if_changed()
        if self.must_be_unit:
            self._check_unit(vectors, start)
        return vectors

    def parts(self, start: int = 0) -> Iterator[Vectors]:
        """All from a position on, in blocks; raises what reading one does."""
        return (self[first : first + self._rows] for first in range(start, len(self), self._rows))

    def refuse_if_changed(self) -> None:
        """Raise RefusedImportError if the file is another than the one that was opened."""
        if _signature(self.path) != self._before:
            raise RefusedImportError(f"{self.path} changed while it was read; run the same command again")

    def sample(self, count: int, seed: int) -> Vectors:
        """Draw `count` vectors, or all if there are fewer; reads the whole file."""
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(self), min(count, len(self)), replace=False, shuffle=False))
        drawn = np.empty((len(chosen), self.dimension), dtype=np.float32)
        with progress("reading", "vectors", total=len(self)) as advance:
            start = 0
            for part in self.parts():
                first, last = np.searchsorted(chosen, [start, start + len(part)])
                drawn[first:last] = part[chosen[first:last] - start]
                start += len(part)
                advance(len(part))
        return drawn

    def _open(self) -> tuple[Any, Any]:
        """The index, and the one that has its vectors; the first owns the second."""
        try:
            outer = open_mapped(self.path)
        except RuntimeError as error:
            raise AssetError(
                f"cannot read the FAISS index {self.path} ({error}); name a file that faiss.write_index wrote, and "
                "compare its size with that of its source: it may be cut"
            ) from error
        return outer, faiss.downcast_index(outer.index) if isinstance(outer, faiss.IndexIDMap) else outer

    def _check_unit(self, vectors: Vectors, start: int) -> None:
        lengths = lengths_of(vectors)
        # So written that NaN is refused, too.
        if not (near := np.abs(lengths - 1) <= _TOLERANCE).all():
            row = int(np.argmin(near))
            keep = (
                "; as it compares inner products, it can be served as it is: add --keep" if self.inner_product else ""
            )
            raise RefusedImportError(
                f"{self.path}: vector {start + row} has length {lengths[row]:.3f}; {NOT_UNIT}{keep}"
            )

    def _check_ids(self) -> None:
        if isinstance(self._outer, faiss.IndexIDMap):
            ids = faiss.rev_swig_ptr(self._outer.id_map.data(), self._outer.id_map.size())
            for start in range(0, len(ids), _IDS):
                some = ids[start : start + _IDS]
                if (wrong := np.flatnonzero(some != np.arange(start, start + len(some)))).size:
                    raise AssetError(
                        f"{self.path}: the id of vector {start + wrong[0]} is {some[wrong[0]]}; {_NO_POSITIONS}"
                    )
        if (lists := lists_of(self._index)) is not None:
            seen = np.zeros(len(self), dtype=bool)
            for number in range(lists.nlist):
                if not (size := lists.list_size(number)):
                    continue
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                if ids.min() < 0 or ids.max() >= len(seen):
                    raise AssetError(f"{self.path}: its ids go from {ids.min()} to {ids.max()}; {_NO_POSITIONS}")
                seen[ids] = True
            if not seen.all():
                raise AssetError(f"{self.path}: no vector has the id {int(np.argmin(seen))}; {_NO_POSITIONS}")


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def lengths_of(vectors: Vectors) -> Vectors:
    """The length of each vector."""
    lengths: Vectors = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return lengths


def _holder(index: Any) -> Any:
    """The index that holds the vectors, or codes of them, of another one."""
    if isinstance(index, faiss.IndexHNSW):
        return faiss.downcast_index(index.storage)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.downcast_index(index.index)
    return index


def _is_whole(index: Any) -> bool:
    if isinstance(index, faiss.IndexPreTransform):
        return False
    holder = _holder(index)
    return holder.sq.qtype in _FINE if isinstance(holder, _SCALAR) else isinstance(holder, _FULL)
