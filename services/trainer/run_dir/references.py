"""The reference models of a run, beside its checkpoints: each is written once, and named by the checkpoints after it.

A checkpoint names the directory and the checksum of its manifest, so one of another run is never taken for it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from research.atomic_io import sha256_of, write_json
from research.weights.checksummed_dir import MANIFEST, atomic_checksummed_dir, corruption_in, discard

_NAMED = "reference.json"
_PREFIX = "reference-"


class HasReference(Protocol):
    """What a reference is written of: a `Learner`, or a `Team` of them."""

    @property
    def reference_changes(self) -> int | None: ...
    def save_reference(self, directory: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class _Name:
    """What a checkpoint says of its reference."""

    directory: str
    manifest_sha256: str


class References:
    """The references in the checkpoint directory of one run, and which of them the learner has."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # What the learner has, as it was when it had changed so often.
        self._held: tuple[int, _Name] | None = None

    def name_in(self, checkpoint: Path, learner: HasReference) -> None:
        """Name the learner's reference in a checkpoint that is being written; write it first if it is new."""
        changes = learner.reference_changes
        if changes is None:
            return
        if self._held is None or self._held[0] != changes or not (self._directory / self._held[1].directory).is_dir():
            self._held = changes, self._write(learner)
        write_json(checkpoint / _NAMED, asdict(self._held[1]))

    def of(self, checkpoint: Path) -> Path:
        """Where the reference of a checkpoint is; in itself, as it was until 2026-11, if it names none."""
        name = _named_in(checkpoint)
        return self._directory / name.directory if name else checkpoint

    def fault_in(self, checkpoint: Path) -> str | None:
        """What is wrong with the reference that a checkpoint names; None if it is intact, or the checkpoint its own."""
        name = _named_in(checkpoint)
        if name is None:
            return None
        directory = self._directory / name.directory
        fault = corruption_in(directory)
        if fault is None and sha256_of(directory / MANIFEST) != name.manifest_sha256:
            fault = f"its {MANIFEST} is another than when the checkpoint was written"
        return f"its reference {directory}: {fault}" if fault else None

    def restored(self, checkpoint: Path, learner: HasReference) -> None:
        """Tell that the learner has the reference of a checkpoint from now on."""
        name, changes = _named_in(checkpoint), learner.reference_changes
        self._held = (changes, name) if name is not None and changes is not None else None

    def discard_unnamed(self) -> None:
        """Delete every reference that no checkpoint names, whole or damaged."""
        named = {name.directory for path in self._directory.glob(f"*/{_NAMED}") if (name := _named_in(path.parent))}
        for path in self._finished():
            if path.name not in named:
                discard(path)

    def _finished(self) -> list[Path]:
        found = self._directory.glob(f"{_PREFIX}*")
        return sorted(path for path in found if path.name.removeprefix(_PREFIX).isdecimal())

    def _write(self, learner: HasReference) -> _Name:
        taken = self._finished()
        number = int(taken[-1].name.removeprefix(_PREFIX)) + 1 if taken else 1
        target = self._directory / f"{_PREFIX}{number:02d}"
        with atomic_checksummed_dir(target) as directory:
            learner.save_reference(directory)
        return _Name(target.name, sha256_of(target / MANIFEST))


def link_checkpoint(checkpoint: Path, directory: Path) -> None:
    """Give another run a checkpoint with the reference that it names, in its own checkpoint directory, by hard links.

    Raises FileExistsError if it is there.
    """
    name = _named_in(checkpoint)
    for each in (*([name.directory] if name else []), checkpoint.name):
        shutil.copytree(checkpoint.parent / each, directory / each, copy_function=os.link)


def _named_in(checkpoint: Path) -> _Name | None:
    """The name that a checkpoint gives; None if it gives none that can be read."""
    try:
        return _Name(**json.loads((checkpoint / _NAMED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
