"""What a power cut would leave: files as they were when last synced, under the names their directory had then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch


class Disk:
    """What is on the disk below a directory, which was empty and synced in the beginning."""

    def __init__(self, root: Path) -> None:
        self._root = root.stat().st_ino
        self._files: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {self._root: {}}

    def synced(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            self._names[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._files[inode] = path.read_bytes()

    def after_a_cut(self) -> dict[str, bytes]:
        """The files that can be reached, by path."""
        return dict(self._below("", self._root))

    def _below(self, prefix: str, directory: int) -> Iterator[tuple[str, bytes]]:
        for name, inode in self._names.get(directory, {}).items():
            if inode in self._names:
                yield from self._below(f"{prefix}{name}/", inode)
            else:
                yield prefix + name, self._files.get(inode, b"")  # never synced: the name of nothing


@contextmanager
def watched(root: Path) -> Iterator[Disk]:
    """Follow what is synced below `root` while the block runs."""
    disk, fsync = Disk(root), os.fsync

    def noting(descriptor: Any) -> None:
        fsync(descriptor)
        disk.synced(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    with patch("os.fsync", noting):
        yield disk
