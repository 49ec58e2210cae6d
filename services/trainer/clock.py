"""The phases of a run: which one it is in, for the status, and how long each has taken since the run began."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from services.trainer.status import RunPhase, RunStatus


class PhaseClock:
    """Seconds by phase, over all processes that the run has had."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, phase: RunPhase, total: int = 0) -> Iterator[None]:
        """Be in a phase, of `total` pieces of work (0: unknown)."""
        self._status.enter(phase, total)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[str(phase)] += time.perf_counter() - started

    @property
    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)

    def restore(self, seconds: Mapping[str, float]) -> None:
        """Go on from what a checkpoint says."""
        self._seconds = defaultdict(float, seconds)

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds by phase that were added to `before`, to the millisecond; phases of the run that took none, too."""
        return {phase: round(total - before.get(phase, 0.0), 3) for phase, total in self._seconds.items()}
