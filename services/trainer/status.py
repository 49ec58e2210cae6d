"""What a run is doing right now, for the terminal and for the status page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class RunPhase(StrEnum):
    """Where a run stands."""

    IDLE = "idle"
    STARTING = "starting"
    WARMUP = "warm-up"
    ROLLOUT = "rollout"
    UPDATE = "update"
    PUBLISH = "publish"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(slots=True)
class RunStatus:
    """Updated by the loop, read by everybody else; `listeners` hear each line that is worth telling."""

    run: str
    steps: int
    phase: RunPhase = RunPhase.IDLE
    step: int = 0
    version: int = 0
    done: int = 0
    total: int = 0
    waiting_for: str | None = None
    error: str | None = None
    started: float = field(default_factory=time.time)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    listeners: list[Callable[[str], None]] = field(default_factory=list)

    def enter(self, phase: RunPhase, total: int = 0) -> None:
        self.phase, self.done, self.total = phase, 0, total

    def advance(self) -> None:
        self.done += 1

    def say(self, line: str) -> None:
        self.lines.append(line)
        for listener in self.listeners:
            listener(line)

    def as_dict(self) -> dict[str, Any]:
        fields = ("run", "steps", "phase", "step", "version", "done", "total", "waiting_for", "error", "started")
        return {name: getattr(self, name) for name in fields} | {"lines": list(self.lines)}
