"""Steps of a recorded run as lengths and times, and files of such numbers."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.simulation.workload import EpisodeShape, GroupShape, TurnShape

SAMPLE = Path(__file__).parent / "recorded.json.gz"  # the eight steps of a `make demo` on two cores, 2026-11-25


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A finished step: its groups, and the seconds of its phases."""

    groups: tuple[GroupShape, ...]
    rollout: float
    update: float
    publish: float

    @property
    def seconds(self) -> float:
        return self.rollout + self.update + self.publish

    @property
    def computed(self) -> int:
        """Tokens that its update computed."""
        return sum(group.computed for group in self.groups)


def write_sample(steps: list[RecordedStep], path: Path) -> None:
    """Write the numbers of `steps`, compressed."""
    path.write_bytes(gzip.compress(orjson.dumps(steps), mtime=0))


def read_sample(path: Path) -> list[RecordedStep]:
    """The steps in a file that `write_sample` made."""

    def episode(prompt: int, turns: list[dict[str, Any]]) -> EpisodeShape:
        return EpisodeShape(prompt, tuple(TurnShape(**turn) for turn in turns))

    def group(episodes: list[dict[str, Any]], computed: int) -> GroupShape:
        return GroupShape(tuple(episode(**each) for each in episodes), computed)

    steps = orjson.loads(gzip.decompress(path.read_bytes()))
    return [RecordedStep(**{**step, "groups": tuple(group(**each) for each in step["groups"])}) for step in steps]
