"""Passages on disk with random access: one JSON object a line, and where each line begins.

Both files are memory-mapped: 21 million passages cost address space, not RAM, and replicas share the cache.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson

from research.errors import AssetError
from research.files import atomic_write
from research.passages import Passage

_LINES = "passages.jsonl"
_OFFSETS = "offsets.npy"
_REPAIR = "build the index again with `research index`"


def write_passage_store(directory: Path, passages: Iterable[Passage]) -> None:
    """Write the two files of a store into `directory`; a store that is there already is replaced."""
    offsets = array("Q", [0])
    with atomic_write(directory / _LINES) as lines:
        for passage in passages:
            size = lines.write(orjson.dumps(asdict(passage), option=orjson.OPT_APPEND_NEWLINE))
            offsets.append(offsets[-1] + size)
    with atomic_write(directory / _OFFSETS) as stream:
        np.save(stream, np.frombuffer(offsets, dtype=np.uint64))


class PassageStore:
    """Reads passages by their position.

    Raises:
        AssetError: a file is missing or the two do not belong together.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._offsets = np.load(directory / _OFFSETS, mmap_mode="r")
            with (directory / _LINES).open("rb") as lines:
                self._lines = mmap.mmap(lines.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise AssetError(f"the passages in {directory} are missing or broken ({error}); {_REPAIR}") from error
        if int(self._offsets[-1]) != len(self._lines):
            raise AssetError(f"{directory / _LINES} does not fit {_OFFSETS}; {_REPAIR}")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def record(self, position: int) -> dict[str, str]:
        """The passage at `position` as a fresh `{"id", "title", "text"}`."""
        start, end = int(self._offsets[position]), int(self._offsets[position + 1])
        passage: dict[str, str] = orjson.loads(self._lines[start:end])
        return passage
