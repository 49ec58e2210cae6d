"""`metrics.jsonl`: an entry per finished step, each on the disk when it is written, each read once."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.atomic_io import atomic_write
from services.trainer.entry import Entry, entry_from_json


class MetricsFile:
    """Reads what was added since it was last asked, so that a look costs the same after ten thousand steps.

    Any thread may ask.
    """

    def __init__(self, path: Path, spoilt: Callable[[str, str], None]) -> None:
        """`spoilt` is told which line is no entry, and why."""
        self.path = path
        self._spoilt = spoilt
        self._lock = threading.Lock()
        self._offset, self._lines, self._last = 0, 0, b""  # how far it was read, and the line before that
        self._entries: list[Entry] = []

    def entries(self) -> list[Entry]:
        """One per line that is whole. They are shared: nobody changes them."""
        with self._lock:
            try:
                self._read_on()
            except FileNotFoundError:
                self._forget()
            return list(self._entries)

    def add(self, entry: Entry) -> None:
        """Append one; it is on the disk when this returns."""
        with self.path.open("ab+") as out:
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    out.write(b"\n")  # half a line that a kill left stays one of its own
            out.write(json.dumps(entry).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())

    def keep_up_to(self, step: int) -> None:
        """Delete the entries of later steps."""
        kept = [entry for entry in self.entries() if entry["step"] <= step]
        with atomic_write(self.path) as out:
            out.writelines(json.dumps(entry).encode() + b"\n" for entry in kept)

    def _read_on(self) -> None:
        with self.path.open("rb") as file:
            # A rollback writes another file, in which others may stand: what was read last must still be there.
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._forget()
                file.seek(0)
            *lines, _ = file.read().split(b"\n")  # a kill may leave half a line at the end
        for line in lines:
            self._last = line + b"\n"
            self._offset += len(self._last)
            self._lines += 1
            if (record := json_object(line)) is not None and isinstance(record.get("step"), int):
                self._entries.append(entry_from_json(record))
            else:
                self._spoilt(f"{self.path}:{self._lines}", "no entry of a step")

    def _forget(self) -> None:
        self._offset, self._lines, self._last, self._entries = 0, 0, b"", []


def json_object(text: bytes) -> dict[str, Any] | None:
    """None if it is none, whatever it is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
