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
        self._since: dict[str, float] = {}

    @contextmanager
    def at_work(self, stage: str) -> Iterator[None]:
        """While the block runs, the stage is at work."""
        self._since[stage] = time.monotonic()
        try:
            yield
        finally:
            del self._since[stage]

    @property
    def stuck(self) -> str | None:
        """Which stages hang and for how long, or None."""
        now = time.monotonic()
        hanging = [(stage, now - since) for stage, since in dict(self._since).items() if now - since > STUCK_SECONDS]
        told = ", ".join(f"{stage} for {seconds:.0f} s" for stage, seconds in sorted(hanging))
        return f"a search hangs ({told}); restart the retriever" if told else None
