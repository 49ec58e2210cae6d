"""Passages on disk with random access: an Arrow file, memory-mapped.

Twenty-one million passages cost address space, not RAM, and replicas on one host share the page cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from research.atomic_io import atomic_write
from research.errors import AssetError
from research.passages import CorpusRow, Passage
from services.retriever.index.file_sums import advice

PASSAGES = "passages.arrow"

# Rows per record batch: dividing a position by it gives the batch.
_ROWS = 4096
_FIELDS = ("id", "title", "text")
_MORE = "fields"  # of a corpus row, as JSON; indexes from before 2026-12 have no such column
_SCHEMA = pa.schema([(name, pa.string()) for name in (*_FIELDS, _MORE)])


def write_passage_store(directory: Path, passages: Iterable[Passage]) -> None:
    """Stream passages into `directory`; an existing store is replaced once the new one is complete."""
    stream = iter(passages)
    with atomic_write(directory / PASSAGES) as out, pa.ipc.new_file(out, _SCHEMA) as arrow:
        while rows := list(islice(stream, _ROWS)):
            columns = [pa.array([getattr(passage, name) for passage in rows]) for name in _FIELDS]
            columns.append(pa.array([_more(passage) for passage in rows], pa.string()))
            arrow.write_batch(pa.record_batch(columns, schema=_SCHEMA))


def _more(passage: Passage) -> str | None:
    return passage.fields if isinstance(passage, CorpusRow) else None


class PassageStore:
    """Reads passages by their position.

    Raises:
        AssetError: the file is missing or corrupt.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / PASSAGES
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = self._file.num_record_batches
            last = self._file.get_batch(batches - 1).num_rows if batches else 0
        except (OSError, pa.ArrowInvalid) as error:
            raise AssetError(f"the passages in {path} are missing or corrupt ({error}); {advice(error)}") from error
        self._count: int = max(batches - 1, 0) * _ROWS + last
        # A batch is a view of the file; opening it again for each passage would parse its header each time.
        self._batch = lru_cache(maxsize=None)(self._file.get_batch)

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> Iterator[tuple[int, list[Any]]]:
        """All values of a column, in portions, each with the position of its first; none if there is no such column."""
        if name not in self._file.schema.names:
            return
        for number in range(self._file.num_record_batches):
            yield number * _ROWS, self._file.get_batch(number).column(name).to_pylist()

    def record(self, position: int) -> dict[str, str]:
        """The passage at `position` as a fresh `{"id", "title", "text"}`, with `fields` if its row said more."""
        batch, row = divmod(position, _ROWS)
        values = [column[row].as_py() for column in self._batch(batch).columns]
        record = dict(zip(_FIELDS, values, strict=False))
        if len(values) > len(_FIELDS) and values[-1] is not None:
            record[_MORE] = values[-1]
        return record
