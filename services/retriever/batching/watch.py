"""Notices a stage that hangs: it has been at one piece of work for longer than any takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# A batch takes tenths of a second, Milvus gives up after 30, and a machine that swaps may be slow.
STUCK_SECONDS = 90.0


class StageWatch:
    """Since when each stage is at work. Written by the threads of the stages, read by the event loop."""

    def __init__(self) -> None:
        self._at_work: dict[object, tuple[str, float, float | None]] = {}  # who, since when, how long it may take

    @contextmanager
    def at_work(self, stage: str, most_seconds: float | None = None) -> Iterator[None]:
        """While the block runs, the stage is at work, which takes it at most so long (else `STUCK_SECONDS`)."""
        work = object()
        self._at_work[work] = stage, time.monotonic(), most_seconds
        try:
            yield
        finally:
            del self._at_work[work]

    @property
    def stuck(self) -> str | None:
        """Which stages hang and for how long, or None."""
        now = time.monotonic()
        hanging = [
            (stage, now - since)
            for stage, since, most in list(self._at_work.values())
            if now - since > (STUCK_SECONDS if most is None else most)
        ]
        told = ", ".join(f"{stage} for {seconds:.0f} s" for stage, seconds in sorted(hanging))
        return f"the retriever hangs ({told}); restart it" if told else None
