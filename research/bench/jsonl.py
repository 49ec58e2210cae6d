"""JSONL files that grow one line at a time and survive a kill at any moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.errors import AssetError, ConfigurationError

_BLOCK = 1 << 16


class AppendOnlyJsonl:
    """A file open for appending, by one process at a time; a line torn by a kill is dropped first.

    Raises ConfigurationError if another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise ConfigurationError(f"{path} is being written by another process; wait for it, or end it") from error
        _drop_torn_line(path)

    @property
    def is_empty(self) -> bool:
        return os.fstat(self._stream.fileno()).st_size == 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Write one line, on the disk before this returns."""
        # A lone surrogate, which a model can write, becomes its own JSON escape.
        self._stream.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file with their line numbers; a last line without its end, torn by a kill, is skipped.

    Raises AssetError naming the invalid line.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.endswith(b"\n") and line != b"\n":
                    yield number, _object(line, f"{path}:{number}")
    except OSError as error:
        raise AssetError(f"cannot read {path}: {error.strerror}") from error


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AssetError(f"{place} is not JSON ({error}); delete the line, and what it told is done again") from error
    if not isinstance(record, dict):
        raise AssetError(f"{place} is not a record of the bench")
    return record


def _drop_torn_line(path: Path) -> None:
    with path.open("r+b") as stream:
        end = whole = stream.seek(0, os.SEEK_END)
        while whole > 0:
            start = max(0, whole - _BLOCK)
            stream.seek(start)
            newline = stream.read(whole - start).rfind(b"\n")
            if newline >= 0:
                whole = start + newline + 1
                break
            whole = start
        if whole < end:
            stream.truncate(whole)
