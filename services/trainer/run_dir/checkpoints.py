"""The checkpoints of a run; from any of them it continues as if it had never stopped.

A directory named `step-…` was complete when written (`atomic_checksummed_dir`); one that is corrupt, or whose reference
is, is set aside, with a warning.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from research.atomic_io import write_json
from research.errors import TrainingError
from research.weights.checksummed_dir import PARTIAL, atomic_checksummed_dir, corruption_in, discard
from services.trainer.run_dir.references import HasReference, References

logger = logging.getLogger(__name__)

_STATE = "state.json"
_DAMAGED = "damaged-"
_NAME = re.compile(r"step-[0-9]+(-[0-9]+)?")


def step_name(step: int) -> str:
    """The name of the checkpoint after a step."""
    return f"step-{step:06d}"


@dataclass(frozen=True, slots=True)
class RunState:
    """The small part of a checkpoint; `updates` counts the updates that were made.

    `curriculum` is the success per template and `difficulty` that per question (`QuestionSampler`), which choose the
    next questions; `seconds` counts each phase since the run began; `drawn` are the groups begun for later steps, with
    the ids of their questions.
    """

    step: int
    version: int
    updates: int
    question_cursors: dict[str, int]
    seconds: dict[str, float]
    curriculum: dict[str, float] = field(default_factory=dict)
    roll_backs: int = 0
    difficulty: dict[str, list[float]] = field(default_factory=dict)
    drawn: dict[str, str] = field(default_factory=dict)


class Saveable(HasReference, Protocol):
    """What a checkpoint is of: a `Learner`, or a `Team` of them."""

    def save(self, directory: Path) -> None: ...
    def load(self, directory: Path, reference: Path) -> None: ...
    def set_updates(self, updates: int) -> None: ...


class CheckpointStore:
    """The checkpoints of one run; the newest `keep` are kept."""

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._references = References(directory)

    def save(self, learner: Saveable, state: RunState) -> Path:
        """Write one checkpoint, and before it the reference if it is new; blocks until both are on the disk.

        Older ones are deleted only after that.
        """
        target = self._directory / self._free_name(state.step)
        with atomic_checksummed_dir(target) as directory:
            self._references.name_in(directory, learner)
            learner.save(directory)
            write_json(directory / _STATE, asdict(state))
        for old in self.all()[: -self._keep]:
            discard(old)
        self._references.discard_unnamed()
        return target

    def all(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(path for path in self._directory.glob("step-*") if _NAME.fullmatch(path.name))

    def restore_latest(self, learner: Saveable) -> RunState | None:
        """Load the newest intact checkpoint into the learner; None if the run has none yet.

        Corrupt checkpoints are renamed to `damaged-step-…`; call it before the first `save`, because it also removes
        what a kill has left unfinished.

        Raises TrainingError if there are checkpoints, but none is intact.
        """
        for unfinished in self._directory.glob(f"*{PARTIAL}"):
            shutil.rmtree(unfinished)
        for path in reversed(self.all()):
            if fault := corruption_in(path) or self._references.fault_in(path):
                logger.warning("checkpoint %s is corrupt (%s) and was set aside; the one before is used", path, fault)
                self._set_aside(path)
                continue
            state = RunState(**json.loads((path / _STATE).read_text(encoding="utf-8")))
            learner.load(path, self._references.of(path))
            self._references.restored(path, learner)
            learner.set_updates(state.updates)
            return state
        if damaged := sorted(self._directory.glob(f"{_DAMAGED}*")):
            raise TrainingError(
                f"no checkpoint in {self._directory} is intact ({', '.join(path.name for path in damaged)}); "
                "restore a good copy of one under its step-… name, with the reference that it names, or start over "
                "with --fresh"
            )
        return None

    def _free_name(self, step: int) -> str:
        """`step-000010`; if the run returned to that step and saves it again, `step-000010-01` and so on.

        Nothing is overwritten, because a directory cannot be replaced in one move; the later name sorts after it.
        """
        name = step_name(step)
        taken = [path.name for path in self.all() if path.name.startswith(name)]
        return f"{name}-{int(taken[-1].removeprefix(name).lstrip('-') or 0) + 1:02d}" if taken else name

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(_DAMAGED + path.name)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
