"""JSONL files that grow by a line at a time and survive a kill at any moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.errors import AssetError, ConfigurationError


class GrowingLines:
    """A file open for more lines, by one process at a time; a line that a kill has torn is dropped first.

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
        # A lone surrogate, as a model can write it, becomes the JSON escape of itself.
        self._stream.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file with their line numbers; a last line without its end, torn by a kill, is left out.

    Raises AssetError that names the broken line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AssetError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(text.split("\n")[:-1], 1):
        if line:
            try:
                record = json.loads(line)
            except ValueError as error:
                raise AssetError(f"{path}:{number}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise AssetError(f"{path}:{number}: not a record of the bench")
            yield number, record


def _drop_torn_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
