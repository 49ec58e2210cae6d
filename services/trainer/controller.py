"""Starts, pauses and stops a run inside the trainer's process."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from research.errors import ResearchError
from research.settings import Settings
from services.trainer.loop import TrainingLoop
from services.trainer.setup import training_loop
from services.trainer.status import RunPhase, RunStatus

logger = logging.getLogger(__name__)


class RunController:
    """At most one run at a time; `status` always tells where it stands."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self._loop: TrainingLoop | None = None
        self.status = RunStatus(settings.run, settings.grpo.steps)

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def run_dir(self) -> str:
        return str(self._settings.run_dir)

    def start(self) -> bool:
        """Start the run, or let a paused one go on; False if there was nothing to do."""
        if self.is_running:
            if self._loop is None or self.status.phase is not RunPhase.PAUSED:
                return False
            self._loop.resume()
            return True
        self.status.error = None
        self._task = asyncio.create_task(self._run())
        return True

    def pause(self) -> bool:
        """Hold the run before its next step; False if none is running."""
        if self._loop is None or not self.is_running:
            return False
        self._loop.pause()
        return True

    def stop(self) -> bool:
        """End the run after its present step, with a checkpoint; False if none is running."""
        if self._loop is None or not self.is_running:
            return False
        self._loop.stop()
        return True

    async def wait(self) -> None:
        """Return when the run has ended; raises what made it fail."""
        if self._task is not None:
            await self._task

    async def cancel(self) -> None:
        """End the run at once; it resumes from its last checkpoint."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, ResearchError):
                await self._task

    async def _run(self) -> None:
        try:
            async with training_loop(self._settings, self.status) as loop:
                self._loop = loop
                await loop.run()
        except asyncio.CancelledError:
            self.status.enter(RunPhase.STOPPED)
            raise
        except Exception as error:
            error = _first_of(error)
            self.status.enter(RunPhase.FAILED)
            self.status.error = str(error)
            logger.error("the run failed: %s", error, exc_info=not isinstance(error, ResearchError))
            raise error
        finally:
            self._loop = None


def _first_of(error: Exception) -> Exception:
    """The cause inside the groups that task groups raise."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
