"""A file of JSON lines that only grows, each sealed with a digest: what is spoilt is named and left out."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from research.atomic_io import make_directory, to_disk
from research.errors import AssetError, ConfigurationError

logger = logging.getLogger(__name__)

_BEFORE, _BETWEEN, _AFTER = b'{"seal":"', b'","entry":', b"}\n"
_SEAL_CHARS = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line stands, in bytes."""

    start: int
    size: int


class SealedLines:
    """Lines `{"seal": …, "entry": {…}}`; any thread may use it.

    Attributes:
        spoilt: lines that `entries` left out, besides a last one that is torn.

    Args:
        path: of the file, which may be missing.
        writable: create the file and append to it, alone; or else only read, beside others.

    Raises:
        AssetError: it cannot be opened.
        ConfigurationError: it is to be written, and another process writes it.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            if writable:
                make_directory(path.parent)
            self._file = path.open("a+b" if writable else "rb", buffering=0)
            if writable:
                to_disk(path.parent)
        except OSError as error:
            raise AssetError(f"{path} cannot be opened: {error.strerror}") from error
        if writable:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._file.close()
                raise ConfigurationError(f"{path} is being written by another process; end it first") from error
        self._writable = writable
        self._end = 0
        self.spoilt = 0

    def entries(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Every whole entry and its place, in order; to be read to the end before the first `add`.

        A last line that is torn is cut off, if the file is to be written.
        """
        start = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                entry = _opened(line)
                if entry is not None:
                    yield Place(start, len(line)), entry
                elif line.endswith(b"\n"):
                    self.spoilt += 1
                    logger.warning("%s:%d is spoilt and left out", self.path, number)
                else:
                    logger.warning("%s:%d is torn and left out", self.path, number)
                    if self._writable:
                        os.ftruncate(self._file.fileno(), start)
                    break
                start += len(line)
        self._end = start

    def read(self, place: Place) -> dict[str, Any]:
        """One entry. Raises AssetError if it has been spoilt since the file was opened."""
        entry = _opened(os.pread(self._file.fileno(), place.size, place.start))
        if entry is None:
            raise AssetError(
                f"{self.path.name}: byte {place.start} and what follows has been spoilt; restart the retriever"
            )
        return entry

    def add(self, entry: dict[str, Any]) -> Place:
        """Append an entry; it is on the disk when this returns. Raises OSError, and leaves no half of a line."""
        body = orjson.dumps(entry)
        line = _BEFORE + _seal(body) + _BETWEEN + body + _AFTER
        with self._lock:
            try:
                if self._file.write(line) != len(line):
                    raise OSError(f"{self.path} has no room for another line")
                os.fsync(self._file.fileno())
            except OSError:
                os.ftruncate(self._file.fileno(), self._end)
                raise
            place = Place(self._end, len(line))
            self._end += len(line)
            return place

    def close(self) -> None:
        self._file.close()


def _seal(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_SEAL_CHARS].encode()


def _opened(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None if the line is not as it was written."""
    body_at = len(_BEFORE) + _SEAL_CHARS + len(_BETWEEN)
    body = line[body_at : -len(_AFTER)]
    if line != _BEFORE + _seal(body) + _BETWEEN + body + _AFTER:
        return None
    entry = orjson.loads(body)
    return entry if isinstance(entry, dict) else None
