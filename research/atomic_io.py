"""Files and digests: what appears under its final name is whole, and on the disk, names included."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write next to `path`, then rename; an error, a kill or a power cut leaves the old content (or none) in place."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Return once the content of a file, or the names in a directory, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A directory to fill; it appears as `target`, complete or not at all.

    Each process fills a hidden one of its own next to `target`; a kill leaves it there. Without `replace`, it raises
    OSError if something is at `target` by the end.
    """
    make_directory(target.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        partial.chmod(0o755)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            if path.is_dir() or path.is_file():
                to_disk(path)
        if replace and target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        to_disk(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_directory(path: Path) -> None:
    """Create a directory and those above it, as far as they are missing; they are on the disk when this returns."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        to_disk(each.parent)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
