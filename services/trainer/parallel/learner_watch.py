"""Notices a learner that hangs: its thread has shown no sign of life for longer than any part of its work takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# A micro-batch takes seconds or minutes; to write the state of a large model to a slow disk may take most of an hour.
SILENT_SECONDS = 3600.0


class LearnerWatch:
    """Since when the learner's thread is silent. Written by that thread, read by the event loop."""

    def __init__(self) -> None:
        self._since: float | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While the block runs, the learner is at work."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def beat(self) -> None:
        """Say that the work goes on, as before each micro-batch."""
        if self._since is not None:
            self._since = time.monotonic()

    @property
    def stuck(self) -> str | None:
        """For how long the learner hangs, or None."""
        since = self._since
        if since is None or (silent := time.monotonic() - since) <= SILENT_SECONDS:
            return None
        return (
            f"the learner has shown no sign of life for {silent:.0f} s; restart the trainer, and the run continues "
            "from its last checkpoint"
        )
