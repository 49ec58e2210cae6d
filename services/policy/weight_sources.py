"""Where weights come from: they are loaded from there, and again if the next ones cannot be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from research.prompts import trained_prompt
from services.policy.fingerprint import fingerprint


@dataclass(frozen=True, slots=True)
class Identity:
    """A fingerprint of weights, and the SHA-256 of the rules that they were trained with, if they say so."""

    fingerprint: str
    trained_prompt: str | None


@dataclass(frozen=True, slots=True)
class FromDisk:
    """Weights that lie in a checkpoint directory or file."""

    path: Path

    def update_info(self) -> dict[str, str]:
        """What the weight engine is told."""
        return {"path": str(self.path)}

    def identity(self) -> Identity:
        directory = self.path if self.path.is_dir() else self.path.parent
        return Identity(fingerprint(self.path), trained_prompt(directory))

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Received:
    """Weights that the workers have received and keep."""

    group_id: str

    def update_info(self) -> dict[str, str]:
        """What the weight engine is told."""
        return {"received": self.group_id}

    def identity(self) -> Identity:
        """Of the transfer, since nobody reads the weights; nor is the prompt sent."""
        return Identity(hashlib.sha256(self.group_id.encode()).hexdigest()[:16], None)

    def __str__(self) -> str:
        return "received from the trainer"


Source = FromDisk | Received
