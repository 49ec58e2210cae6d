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
    SFT = "sft"
    ROLLOUT = "rollout"
    UPDATE = "update"
    PUBLISH = "publish"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


_STANDING = frozenset({RunPhase.IDLE, RunPhase.PAUSED, RunPhase.STOPPED, RunPhase.FAILED})


@dataclass(slots=True)
class RunStatus:
    """The loop updates it, all other code reads it; `listeners` receive each log line."""

    run: str
    steps: int
    phase: RunPhase = RunPhase.IDLE
    step: int = 0
    version: int = 0
    done: int = 0
    total: int = 0
    waiting_for: str | None = None
    error: str | None = None
    number_format: str = ""
    forecast_seconds: float | None = None
    forecast_at: float = 0.0
    started: float = field(default_factory=time.time)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    listeners: list[Callable[[str], None]] = field(default_factory=list)

    def forecast(self, seconds: float | None) -> None:
        """Set how long the run will take from now on, or from its start."""
        self.forecast_seconds, self.forecast_at = seconds, time.monotonic()

    @property
    def seconds_left(self) -> float | None:
        """How long the run will still take; None if unknown or finished."""
        if self.forecast_seconds is None or self.phase is RunPhase.FINISHED:
            return None
        passed = 0.0 if self.phase in _STANDING else time.monotonic() - self.forecast_at
        return max(0.0, self.forecast_seconds - passed)

    def enter(self, phase: RunPhase, total: int = 0) -> None:
        self.phase, self.done, self.total = phase, 0, total

    def advance(self) -> None:
        self.done += 1

    def log(self, line: str) -> None:
        self.lines.append(line)
        for listener in self.listeners:
            listener(line)

    def as_dict(self) -> dict[str, Any]:
        plain = ("run", "steps", "phase", "step", "version", "done", "total", "waiting_for", "error", "started")
        fields = (*plain, "number_format", "seconds_left")
        return {name: getattr(self, name) for name in fields} | {"lines": list(self.lines)}
