"""Directories that are whole or not there, and that can prove it.

Written beside and renamed, so a kill leaves either all or nothing; a manifest of sizes and SHA-256 sums, written last,
tells what a disk or a copy has spoilt since.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from research.atomic_io import sha256_of, write_json

MANIFEST = "manifest.json"
PARTIAL = ".partial"


@contextmanager
def atomic_checksummed_dir(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Hand out an empty directory beside `target`; when the block ends without an error it is sealed and renamed.

    `replace`: a `target` that is there is moved away just before; a kill between the two leaves none.

    What stands under the final name is on the disk, not only in memory: a power cut is no different from a kill.
    Raises FileExistsError if there is a `target` already, because replacing a directory cannot be atomic.
    """
    if target.exists() and not replace:
        raise FileExistsError(f"{target} is there already")
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    files = sorted(partial.iterdir())
    write_json(partial / MANIFEST, {path.name: _identity(path) for path in files})
    for path in [*files, partial]:
        _to_disk(path)
    former = target.with_name(f"{target.name}.former{PARTIAL}")
    if target.exists():
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
    partial.rename(target)
    _to_disk(target.parent)
    # Last, for the sake of whoever is reading it.
    shutil.rmtree(former, ignore_errors=True)


def corruption_in(directory: Path) -> str | None:
    """What is wrong with a sealed directory, by the name of the first bad file; None if it is as it was sealed."""
    try:
        expected = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name, identity in expected.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != identity["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {identity['bytes']}"
            if sha256_of(path) != identity["sha256"]:
                return f"{name} has another checksum than when it was written"
    except OSError as error:
        return str(error)
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"{MANIFEST} is not a manifest"
    return None


def discard(directory: Path) -> None:
    """Delete a sealed directory; a kill halfway leaves nothing under its final name."""
    shutil.rmtree(directory.rename(directory.with_name(directory.name + PARTIAL)))


def _identity(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
