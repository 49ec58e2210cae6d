"""Which groups each step took, where they are taken as they finish: a resumed run takes them again, in that order."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from research.atomic_io import write_json


@dataclass(frozen=True, slots=True)
class Taken:
    """One group that left those under way: its id, and how many of its episodes were trained on (None: dropped)."""

    group: str
    members: int | None


class TakenGroups:
    """Works in the directory where the record keeps the episodes; a step's file is written before its update."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, step: int, taken: list[Taken]) -> None:
        """Record what a step takes; it is on the disk when this returns."""
        self._directory.mkdir(parents=True, exist_ok=True)
        write_json(self._path(step), [asdict(each) for each in taken])

    def read(self, step: int) -> list[Taken] | None:
        """What a step took; None if it is not known."""
        try:
            return [Taken(each["group"], each["members"]) for each in json.loads(self._path(step).read_bytes())]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def delete_from(self, step: int) -> None:
        """Forget what this step and all later ones took."""
        while (path := self._path(step)).is_file():
            path.unlink()
            step += 1

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.groups.json"
