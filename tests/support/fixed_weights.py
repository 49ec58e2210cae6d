"""Weights to publish that no learner has trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from services.trainer.parallel.ranks import Ranks
from services.trainer.parallel.shards import gather_state, write_state


@dataclass
class FixedWeights:
    """A `Learned`."""

    state: dict[str, Tensor]

    def write_weights(self, base: Path, directory: Path) -> None:
        write_state(self.state, base, directory)

    def gather_weights(self, base: Path) -> dict[str, Tensor]:
        return gather_state(self.state, base, Ranks())
