"""What a run needs to go on after it was stopped: weights, optimizer, cursors and random states, as one directory.

A checkpoint is written beside and renamed, so a directory named `step-…` is always whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from research.files import write_json
from services.trainer.learner import Learner


@dataclass(frozen=True, slots=True)
class RunState:
    """The small part of a checkpoint."""

    step: int
    version: int
    updates: int
    question_cursors: dict[str, int]
    seconds: dict[str, float]


class CheckpointStore:
    """The checkpoints of one run; the newest `keep` are kept."""

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep

    def save(self, learner: Learner, state: RunState) -> Path:
        """Write one checkpoint; blocks for as long as the disk takes."""
        target = self._directory / f"step-{state.step:06d}"
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_model(learner.model, str(partial / "model.safetensors"))
        if learner.reference is not None:
            save_model(learner.reference, str(partial / "reference.safetensors"))
        torch.save(
            {"optimizer": learner.optimizer.state_dict(), "rng": torch.get_rng_state()}, partial / "optimizer.pt"
        )
        write_json(partial / "state.json", asdict(state))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in self.all()[: -self._keep]:
            shutil.rmtree(old)
        return target

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path for path in self._directory.glob("step-*") if not path.name.endswith(".partial"))

    def restore_latest(self, learner: Learner) -> RunState | None:
        """Load the newest checkpoint into the learner; None if there is none yet."""
        found = self.all()
        if not found:
            return None
        path = found[-1]
        load_model(learner.model, str(path / "model.safetensors"), device=str(learner.device))
        if learner.reference is not None:
            load_model(learner.reference, str(path / "reference.safetensors"), device=str(learner.device))
        saved: dict[str, Any] = torch.load(path / "optimizer.pt", weights_only=True, map_location=learner.device)
        learner.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"].cpu())
        state = RunState(**json.loads((path / "state.json").read_text(encoding="utf-8")))
        learner.updates = state.updates
        return state
