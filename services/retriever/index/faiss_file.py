"""FAISS files that others wrote, opened without loading their vectors."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from pathlib import Path
from typing import Any, cast

import faiss

# Four letters at the start of a file name its kind. FAISS maps inverted lists by one flag, codes and graphs by another,
# and takes only one of them; under the wrong one it loads the vectors.
_WITH_LISTS = (b"Iw", b"IxPT")
_WITH_IDS = (b"IxMp", b"IxM2")
# What follows the letters: dimension, count, two fields without use, is_trained, metric.
_HEADER = struct.Struct("<iqqq?i")
_ID_BYTES = 8
_LIBC = ctypes.CDLL(None)


def open_mapped(path: Path) -> Any:
    """Open a FAISS index; its vectors stay on the disk as far as FAISS can do that.

    Raises:
        RuntimeError: the file is missing, truncated, no FAISS index or not all of one.
    """
    with_lists = _kind(path).startswith(_WITH_LISTS)
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if with_lists else faiss.IO_FLAG_MMAP_IFC)
    if with_lists and isinstance(lists := lists_of(index), faiss.OnDiskInvertedLists):
        _check_lists(path, lists)
        # Else each search starts up to 32 threads that read ahead, beside those that are set.
        lists.prefetch_nthread = 0
    return index


def let_go(path: Path) -> None:
    """Let go of the pages that were read of a mapped file: until then they count as memory of this process.

    Whoever has it open reads on, from the cache of the system or from the disk.
    """
    name = os.path.realpath(path)
    # Linux alone has this list.
    with (
        contextlib.suppress(FileNotFoundError),
        Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as mappings,
    ):
        for line in mappings:
            addresses, *_, file = line.rstrip("\n").split(maxsplit=5)
            if file == name:
                start, end = (int(address, 16) for address in addresses.split("-"))
                _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def lists_of(index: Any) -> Any:
    """The inverted lists of an index, or None if it has none."""
    ivf = faiss.try_extract_index_ivf(index)
    return None if ivf is None or ivf.invlists is None else faiss.downcast_InvertedLists(ivf.invlists)


def _kind(path: Path) -> bytes:
    """The four letters of an index, or of the one whose ids it maps."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4 + _HEADER.size + 4)
    except OSError as error:
        raise RuntimeError(error.strerror) from error
    return start[-4:] if start.startswith(_WITH_IDS) else start[:4]


def _check_lists(path: Path, lists: Any) -> None:
    """FAISS does not look, and to read a mapped list beyond the end of the file would kill the process."""
    if not lists.nlist:
        return
    if lists.filename not in ("", str(path)):  # empty for those that are in the file itself
        raise RuntimeError(f"its lists are in another file, {lists.filename}; write the index as one file")
    last = cast(Any, lists.lists).at(lists.nlist - 1)  # FAISS calls its vector a list
    end = last.offset + last.capacity * (lists.code_size + _ID_BYTES)
    if end > lists.totsize:
        raise RuntimeError(f"its lists end at byte {end}, the file ends at {lists.totsize}")
