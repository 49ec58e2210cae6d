"""Holds episodes back while a service is down, so that they pause together instead of failing one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from research.errors import ServiceBusyError, TrainingError
from services.trainer.status import RunStatus

_POLL_SECONDS = 1.0

Check = Callable[[], Awaitable[str | None]]


class OutageError(TrainingError):
    """A service stayed away for as long as a run waits."""


def busy_for_too_long(error: ServiceBusyError) -> TrainingError:
    """The end of a run whose clients have waited for a busy service as long as they may."""
    return TrainingError(f"{error}; it was busy for as long as a run waits (trainer.outage_timeout)")


class ServiceGate:
    """One check of the services for all who wait, however many failed together."""

    def __init__(self, check_services: Check, patience: float, status: RunStatus) -> None:
        """`check_services` returns what is down or serves other weights, or None; `patience` is in seconds."""
        self._check_services = check_services
        self._patience = patience
        self._status = status
        self._waiting: asyncio.Task[bool] | None = None
        self._waiters = 0

    async def wait_until_ready(self, unready: Check | None = None) -> bool:
        """Return once every service is ready (or all that `unready` checks); True if one was down.

        Raises TrainingError after `patience`.
        """
        if unready is not None:
            return await self._wait(unready)
        if self._waiting is None or self._waiting.done():
            self._waiting = asyncio.create_task(self._wait(self._check_services))
        waiting = self._waiting
        self._waiters += 1
        try:
            return await asyncio.shield(waiting)
        finally:
            self._waiters -= 1
            if not self._waiters:
                waiting.cancel()  # nobody waits any more: the run is being ended

    async def _wait(self, unready: Check) -> bool:
        started, was_down = time.monotonic(), False
        try:
            while down := await unready():
                if not was_down:
                    self._status.log(f"training pauses: {down}; it continues when the service is back")
                was_down, self._status.waiting_for = True, down
                if time.monotonic() - started > self._patience:
                    raise OutageError(f"{down}; waited {self._patience:g} s (trainer.outage_timeout)")
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._status.waiting_for = None
        if was_down:
            self._status.log("every service is ready again; training continues")
        return was_down
