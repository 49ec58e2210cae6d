"""The last order to a run, on the disk, so that a restarted trainer continues what it was doing."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

from research.atomic_io import write_json

FILE = "wanted.json"


class Wanted(StrEnum):
    """What the last order asks for: start, pause or stop."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


def read_wanted(run_dir: Path) -> Wanted | None:
    """The last order to a run; None if there is none yet, or the file cannot be read."""
    try:
        return Wanted(json.loads((run_dir / FILE).read_text(encoding="utf-8"))["wanted"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_wanted(run_dir: Path, wish: Wanted) -> None:
    """Write an order; it is on the disk when this returns."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / FILE, {"wanted": str(wish)})


def delete_wanted(run_dir: Path) -> None:
    """Delete the order of a run that has ended."""
    (run_dir / FILE).unlink(missing_ok=True)
