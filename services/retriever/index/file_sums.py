"""What the files of an index are: sizes and checksums, on the disk before the manifest names them."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from research.atomic_io import sha256_of, to_disk

# Reading more at every start would take minutes; of larger files the size is compared.
LARGEST_SUMMED = 2**30

REPAIR = "build it again with `research index`"
_NOT_OF_THE_FILE = {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EINTR}


class FileSum(BaseModel):
    """One file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


def seal(directory: Path) -> dict[str, FileSum]:
    """Bring all files and folders of a directory to the disk; returns the sums of the files by relative path."""
    found = sorted(directory.rglob("*"))
    for path in [*found, directory]:
        to_disk(path)
    return {
        str(path.relative_to(directory)): FileSum(bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in found
        if path.is_file()
    }


def fault_in(directory: Path, files: Mapping[str, FileSum], largest_summed: int | None = LARGEST_SUMMED) -> str | None:
    """What is wrong with the first file that is not as it was sealed, or None.

    `largest_summed`: bytes up to which the content is compared, too; None: of every file.
    """
    for name, expected in files.items():
        path = directory / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return f"{path} is missing"
        if size != expected.bytes:
            return f"{path} has {size} bytes instead of {expected.bytes}"
        if (largest_summed is None or size <= largest_summed) and sha256_of(path) != expected.sha256:
            return f"{path} has another content than when it was written"
    return None


def advice(error: Exception) -> str:
    """What to do about an error of reading a file: nothing is wrong with it if the system has no more descriptors."""
    number = error.errno if isinstance(error, OSError) else None
    # FAISS tells only in words.
    if number in _NOT_OF_THE_FILE or os.strerror(errno.EMFILE) in str(error):
        return "the file may be whole: this is a limit of the process or of the system"
    return REPAIR
