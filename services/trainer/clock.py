"""The phases of a run: which one it is in, for the status, and how long each has taken since the run began."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from services.trainer.status import RunPhase, RunStatus


class PhaseClock:
    """Seconds per phase, summed over all processes of the run."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, phase: RunPhase, total: int = 0) -> Iterator[None]:
        """Enter a phase of `total` work items (0: unknown) and time it."""
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
        """Continue from the seconds in a checkpoint."""
        self._seconds = defaultdict(float, seconds)

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds per phase since `before`, to the millisecond; includes phases of the run that took none."""
        return {phase: round(total - before.get(phase, 0.0), 3) for phase, total in self._seconds.items()}
