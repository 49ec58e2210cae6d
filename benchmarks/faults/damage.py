"""Faults of files: some bytes of a file are changed, or the disk is filled."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.record import Record
from research.weights.checksummed_dir import PARTIAL

_FILLER = "filler"
_PIECE = 1 << 16


def spoil(record: Record, what: str) -> str:
    """Change the newest file of a kind in a run that is not being trained; returns its name, or why there is none."""
    root = record.directory
    candidates = {
        "checkpoints": sorted(root.glob("checkpoints/step-*/model.safetensors")),
        "weights": sorted(root.glob("weights/*/model.safetensors")),
        "episodes": sorted(root.glob("episodes/*.jsonl.gz")),
        "journal": sorted(root.glob("episodes/*.journal.jsonl")),
        "metrics": [root / "metrics.jsonl"],
    }[what]
    found = [path for path in candidates if PARTIAL not in path.parent.name and path.stat().st_size]
    if not found:
        return f"there was no {what} to spoil"
    path = found[-1]
    spoil_file(path)
    return str(path.relative_to(root))


def spoil_file(path: Path) -> None:
    """Overwrite a piece in the middle, as a bad sector would."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(min(64, size - size // 2)).replace(b"\n", b" "))


def fill(directory: Path) -> None:
    """Leave no byte free on the file system of a directory."""
    with (directory / _FILLER).open("wb", buffering=0) as out:
        piece = _PIECE
        while piece:
            try:
                out.write(b"\0" * piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece //= 2


def make_room(directory: Path) -> None:
    """Undo `fill`."""
    (directory / _FILLER).unlink(missing_ok=True)


@contextmanager
def small_disk(directory: Path, mebibytes: int) -> Iterator[str]:
    """A file system of this size at a directory; yields why there is none, if it cannot be mounted (it takes root)."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "fault-bench", str(directory)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        fault = done.stderr.strip()
    except OSError as error:
        fault = str(error)
    try:
        yield fault
    finally:
        if not fault:
            subprocess.run(["umount", "--lazy", str(directory)], check=False)
