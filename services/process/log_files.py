"""Logs of bounded size that a restart does not erase: `name.log`, before it `name.log.1`, and so on."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

KEPT = 3
MOST_BYTES = 20 * 2**20


def begin_log(log: Path) -> None:
    """Move a former log aside, so that a new one can take its name."""
    if log.exists():
        _make_room(log)
        log.rename(_older(log, 1))


def bound_log(log: Path) -> None:
    """Begin a log anew once it is larger than `MOST_BYTES`.

    Whoever writes to it keeps its file, so it is copied and emptied, and must be open for appending. What is written
    between the two is lost; on a full disk, what does not fit.
    """
    with suppress(FileNotFoundError):
        if log.stat().st_size <= MOST_BYTES:
            return
        _make_room(log)
        with suppress(OSError):
            shutil.copyfile(log, _older(log, 1))
        os.truncate(log, 0)


def _make_room(log: Path) -> None:
    for number in range(KEPT - 1, 0, -1):
        with suppress(FileNotFoundError):
            _older(log, number).replace(_older(log, number + 1))


def _older(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
