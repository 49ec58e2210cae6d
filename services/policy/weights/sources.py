"""Where weights come from: they are loaded from there, and reloaded if the next weights cannot be loaded."""

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
    """A fingerprint of weights, the SHA-256 of the prompt that they were trained with (if recorded), and their run."""

    fingerprint: str
    trained_prompt: str | None
    trained: bool
    run: str | None


@dataclass(frozen=True, slots=True)
class FromDisk:
    """Weights in a checkpoint directory or file."""

    path: Path

    def update_info(self) -> dict[str, str]:
        """The arguments that the weight engine receives."""
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
        """The last evaluation of these weights; it may come after they are served."""
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
        """The arguments that the weight engine receives."""
        return {"received": self.group_id}

    def identity(self) -> WeightsId:
        """The identity of the transfer: the weights are not read, and the prompt is not sent."""
        return WeightsId(hashlib.sha256(self.group_id.encode()).hexdigest()[:16], None, trained=True, run=None)

    def quality(self) -> None:
        """Unknown: the weights come without the run's files."""

    def __str__(self) -> str:
        return RECEIVED


Source = FromDisk | Received
