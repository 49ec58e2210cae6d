"""Notices an engine that answers nobody: it hangs, or somebody has paused it and gone."""

from __future__ import annotations

import asyncio
import time
from typing import Any

# A step of the engine may be long, above all on a CPU.
PATIENCE_SECONDS = 120
# Longer than the limits of an update of the weights together (`services.policy.weights`), in which it may be silent.
STUCK_SECONDS = 360
_ANSWER_SECONDS = 1.0


class EngineWatch:
    """Asks vLLM's engine client whether it is paused, one question at a time, and notes since when."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._asked: asyncio.Task[bool] | None = None
        self._asked_at = 0.0
        self._paused_since: float | None = None

    async def fault(self) -> str | None:
        """Why no request has been answered for longer than `PATIENCE_SECONDS`; None if none had to wait so long.

        Raises what the engine raises.
        """
        asked = self._ask()
        await asyncio.wait({asked}, timeout=_ANSWER_SECONDS)
        if not asked.done():
            return self._silent_for(PATIENCE_SECONDS)
        if not asked.result():
            self._paused_since = None
            return None
        self._paused_since = self._paused_since or time.monotonic()
        paused = time.monotonic() - self._paused_since
        if paused <= PATIENCE_SECONDS:
            return None
        return f"requests have been paused for {paused:.0f} s; POST /resume, with the admin token, lets them go on"

    def stuck(self) -> str | None:
        """Why the engine will not answer any more; None if it has within `STUCK_SECONDS`."""
        self._ask()
        return self._silent_for(STUCK_SECONDS)

    def _ask(self) -> asyncio.Task[bool]:
        """The question under way, or a new one."""
        if self._asked is None or self._asked.done():
            if self._asked is not None and not self._asked.cancelled():
                self._asked.exception()  # else asyncio logs that nobody has looked
            self._asked, self._asked_at = asyncio.create_task(self._engine.is_paused()), time.monotonic()
        return self._asked

    def _silent_for(self, most: float) -> str | None:
        silent = time.monotonic() - self._asked_at
        return f"the engine has not answered for {silent:.0f} s" if silent > most else None
