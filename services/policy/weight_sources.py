"""Where weights come from: they are loaded from there, and again if the next ones cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FromDisk:
    """Weights that lie in a checkpoint directory or file."""

    path: Path

    def update_info(self) -> dict[str, str]:
        """What the weight engine is told."""
        return {"path": str(self.path)}

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Received:
    """Weights that the workers have received and keep."""

    group_id: str

    def update_info(self) -> dict[str, str]:
        """What the weight engine is told."""
        return {"received": self.group_id}

    def __str__(self) -> str:
        return "received from the trainer"


Source = FromDisk | Received
