"""Where weights come from: they are loaded from there, and again if the next ones cannot be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from research.prompts import trained_prompt
from research.schemas import RECEIVED, WeightsQuality
from research.weights.run_weights import is_trained, quality_of, read_origin
from services.policy.weights.fingerprint import fingerprint


@dataclass(frozen=True, slots=True)
class WeightsId:
    """A fingerprint of weights, the SHA-256 of the rules that they were trained with, if they say so, and their run."""

    fingerprint: str
    trained_prompt: str | None
    trained: bool
    run: str | None


@dataclass(frozen=True, slots=True)
class FromDisk:
    """Weights that lie in a checkpoint directory or file."""

    path: Path

    def update_info(self) -> dict[str, str]:
        """What the weight engine is told."""
        return {"path": str(self.path)}

    def identity(self) -> WeightsId:
        origin = read_origin(self._directory)
        return WeightsId(
            fingerprint(self.path),
            trained_prompt(self._directory),
            is_trained(self._directory),
            origin.run if origin else None,
        )

    def quality(self) -> WeightsQuality | None:
        """What the last evaluation of these weights said; it may come after they are served."""
        found = quality_of(self._directory)
        return WeightsQuality.model_validate(found) if found else None

    @property
    def _directory(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Received:
    """Weights that the workers have received and keep."""

    group_id: str

    def update_info(self) -> dict[str, str]:
        """What the weight engine is told."""
        return {"received": self.group_id}

    def identity(self) -> WeightsId:
        """Of the transfer, since nobody reads the weights; nor is the prompt sent."""
        return WeightsId(hashlib.sha256(self.group_id.encode()).hexdigest()[:16], None, trained=True, run=None)

    def quality(self) -> None:
        """Nobody tells: the weights come without the run's files."""

    def __str__(self) -> str:
        return RECEIVED


Source = FromDisk | Received
