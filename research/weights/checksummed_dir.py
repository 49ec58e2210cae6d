"""Directories that are complete or absent, and that can prove it.

They are written under another name and renamed, so a kill leaves all or nothing. A manifest of sizes and SHA-256 sums,
written last, reveals what a disk or a copy has corrupted since.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from research.atomic_io import make_directory, sha256_of, to_disk, write_json

MANIFEST = "manifest.json"
PARTIAL = ".partial"


@contextmanager
def atomic_checksummed_dir(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory next to `target`; if the block ends without an error, it is sealed and renamed.

    `replace`: an existing `target` is moved away just before; a kill between the two leaves none.

    Everything under the final name is on disk, not only in memory: a power cut is no different from a kill.
    Raises FileExistsError if `target` exists (without `replace`), because replacing a directory cannot be atomic.
    """
    if target.exists() and not replace:
        raise FileExistsError(f"{target} already exists")
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    make_directory(partial)
    yield partial
    files = sorted(partial.iterdir())
    write_json(partial / MANIFEST, {path.name: _identity(path) for path in files})
    for path in [*files, partial]:
        to_disk(path)
    former = target.with_name(f"{target.name}.former{PARTIAL}")
    if target.exists():
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
    partial.rename(target)
    to_disk(target.parent)
    # Last, because it may still be in use.
    shutil.rmtree(former, ignore_errors=True)


def corruption_in(directory: Path) -> str | None:
    """What is wrong with the first corrupt file of a sealed directory; None if it is as it was sealed."""
    try:
        expected = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name, identity in expected.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != identity["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {identity['bytes']}"
            if sha256_of(path) != identity["sha256"]:
                return f"{name} has a different checksum than when it was written"
    except OSError as error:
        return str(error)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return f"{MANIFEST} is not a manifest"
    return None


def discard(directory: Path) -> None:
    """Delete a sealed directory; a kill halfway leaves nothing under its final name."""
    shutil.rmtree(directory.rename(directory.with_name(directory.name + PARTIAL)))


def _identity(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
