"""Starts, pauses and stops a run inside the trainer's process."""

from __future__ import annotations

import asyncio
import errno
import logging
from contextlib import ExitStack, suppress

from research.errors import ResearchError, TrainingError
from research.settings import Settings
from services.machine.number_formats import resolved
from services.trainer.loop import TrainingLoop
from services.trainer.parallel.ranks import Ranks
from services.trainer.run_dir.lock import RunInUseError, only_trainer
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.run_dir.wanted import Wanted, delete_wanted, read_wanted, write_wanted
from services.trainer.status import RunPhase, RunStatus
from services.trainer.wiring import foresee, training_loop

logger = logging.getLogger(__name__)


class RunController:
    """At most one run at a time; `status` always shows where it stands."""

    def __init__(self, settings: Settings, ranks: Ranks | None = None, *, keeps_orders: bool = False) -> None:
        """`keeps_orders`: write start, pause and stop to the run directory, for `come_back`."""
        self.settings = settings
        self._ranks = ranks or Ranks()
        self._keeps_orders = keeps_orders
        self._task: asyncio.Task[None] | None = None
        self._loop: TrainingLoop | None = None
        self._order = Wanted.RUNNING  # the last one, which also waits for a run that is still loading
        self.status = RunStatus(settings.run, settings.grpo.steps)

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def stuck(self) -> str | None:
        """What hangs for so long that only a restart helps, or None."""
        return None if self._loop is None else self._loop.stuck

    @property
    def run_dir(self) -> str:
        return str(self.settings.run_dir)

    @property
    def is_wanted(self) -> bool:
        """Whether a run continues when the trainer is restarted."""
        return read_wanted(self.settings.run_dir) is Wanted.RUNNING

    def come_back(self) -> None:
        """Follow the last order: continue the run that was under way, or log why not."""
        wish, status = read_wanted(self.settings.run_dir), self.status
        run_dir, grpo = RunDirectory(self.settings.run_dir), self.settings.grpo
        if run_dir.is_finished(grpo.steps, grpo.minutes):
            status.step = run_dir.last_step()
            status.enter(RunPhase.FINISHED)
        elif wish is Wanted.RUNNING:
            status.log(f"{run_dir.directory} was under way when this trainer ended; it continues")
            try:
                self.start()
            except RunInUseError as error:
                status.log(f"WARNING: {error}")
        elif wish is not None:
            status.enter(RunPhase.PAUSED if wish is Wanted.PAUSED else RunPhase.STOPPED)
            status.log(f"{run_dir.directory} was {wish} on purpose; POST /run/start continues it")
        if wish is None and status.phase is RunPhase.IDLE:
            settings, numbers = resolved(self.settings, self.settings.trainer.device)
            status.number_format = numbers.line
            foresee(settings, numbers, status)

    def start(self) -> bool:
        """Start the run, or resume one that is paused or is to pause; False if there was nothing to do.

        Raises RunInUseError if another trainer works in its directory.
        """
        if self.is_running:
            if self._order is not Wanted.PAUSED:
                return False
            self._give(Wanted.RUNNING)
            if self._loop is not None:
                self._loop.resume()
            return True
        held = ExitStack()
        held.enter_context(only_trainer(self.settings.run_dir))
        self._give(Wanted.RUNNING)
        self.status.error = None
        self.status.enter(RunPhase.STARTING)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda task: _ended(task, held))
        return True

    def pause(self) -> bool:
        """Pause the run before its next step; False if none is running, or if it was told to end."""
        if not self.is_running or self._order is Wanted.STOPPED:
            return False
        self._give(Wanted.PAUSED)
        if self._loop is not None:
            self._loop.pause()
        return True

    def stop(self) -> bool:
        """End the run after its current step, with a checkpoint; False if none is running."""
        if not self.is_running:
            return False
        self._give(Wanted.STOPPED)
        if self._loop is not None:
            self._loop.stop()
        return True

    async def wait(self) -> None:
        """Wait for the run to end; raises the error that made it fail."""
        if self._task is not None:
            await self._task

    async def cancel(self) -> None:
        """End the run at once; it resumes from its last checkpoint."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, ResearchError):
                await self._task

    def _give(self, wish: Wanted) -> None:
        self._order = wish
        if self._keeps_orders:
            write_wanted(self.settings.run_dir, wish)

    def _delete_wanted(self) -> None:
        if self._keeps_orders:
            delete_wanted(self.settings.run_dir)

    async def _run(self) -> None:
        try:
            async with training_loop(self.settings, self.status, self._ranks) as loop:
                self._loop = loop
                if self._order is Wanted.PAUSED:
                    loop.pause()
                elif self._order is Wanted.STOPPED:
                    loop.stop()
                await loop.run()
            if self.status.phase is RunPhase.FINISHED:
                self._delete_wanted()
        except asyncio.CancelledError:
            self.status.enter(RunPhase.STOPPED)
            raise
        except Exception as error:
            # A failed run waits for a new order, also after a restart: an alarm that stopped it did so on purpose.
            self._delete_wanted()
            error = _in_words(_first_of(error))
            self.status.enter(RunPhase.FAILED)
            self.status.error = str(error)
            logger.error("the run failed: %s", error, exc_info=not isinstance(error, ResearchError))
            raise error
        finally:
            self._loop = None


def _ended(task: asyncio.Task[None], held: ExitStack) -> None:
    held.close()
    if not task.cancelled():
        task.exception()  # it was logged, and is told by the status; asyncio need not do so again


def _in_words(error: Exception) -> Exception:
    """A full disk as an error that says what to do, whoever met it; any other error as it is."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors, which writes in Rust, has an error of its own.
    if not is_full and f"(os error {errno.ENOSPC})" not in str(error):
        return error
    told = TrainingError(
        f"a disk is full ({error}); make room, and the same command continues from the last checkpoint"
    )
    told.__cause__ = error
    return told


def _first_of(error: Exception) -> Exception:
    """The first error inside the exception groups that task groups raise."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
