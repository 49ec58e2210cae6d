"""Run the trainer: as a server that waits for orders, or as a command that trains and ends."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import uvicorn
from rich.console import Console

from research.settings import Settings
from services.trainer.app import create_app
from services.trainer.console import show
from services.trainer.controller import RunController
from services.trainer.record import RunRecord
from services.trainer.status import RunPhase, RunStatus
from services.web.logs import LOGGING
from services.web.ports import require_free_port

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve status and control until SIGINT or SIGTERM; a run starts on `POST /run/start`."""
    app = create_app(settings)
    app.state.controller.status.listeners.append(logger.info)
    uvicorn.run(
        app,
        host=settings.trainer.host,
        port=settings.trainer.port,
        log_config=LOGGING,
        access_log=False,
    )


View = Callable[[RunStatus, Console], Coroutine[Any, Any, None]]


def train(settings: Settings, *, fresh: bool, console: Console, view: View = show) -> bool:
    """Start or resume the run and follow it to its end; the status page is served meanwhile.

    Args:
        fresh: throw away what the run directory holds.
        view: shows the run in the terminal, until it is cancelled.

    Returns:
        True if the run is finished, False if it was stopped before.

    Raises:
        ResearchError: the run cannot start or cannot go on.
    """
    record = RunRecord(settings.run_dir)
    if fresh:
        shutil.rmtree(record.directory, ignore_errors=True)
    if record.is_finished(settings.grpo.steps):
        console.print(f"{record.directory} is finished; use --fresh to start over, or another name with run=…")
        return True
    require_free_port(settings.trainer.host, settings.trainer.port, "trainer.port")
    return asyncio.run(_train(settings, console, view))


async def _train(settings: Settings, console: Console, view: View) -> bool:
    app = create_app(settings)
    controller: RunController = app.state.controller
    server = uvicorn.Server(
        uvicorn.Config(
            app, host=settings.trainer.host, port=settings.trainer.port, log_level="warning", access_log=False
        )
    )
    viewing = asyncio.create_task(view(controller.status, console))
    await asyncio.sleep(0)
    controller.start()
    run, serving = asyncio.create_task(controller.wait()), asyncio.create_task(server.serve())
    try:
        await asyncio.wait({run, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not run.done():
            console.print("stopping; start again to go on from the last checkpoint")
            await controller.cancel()
        with suppress(asyncio.CancelledError):
            await run
        return controller.status.phase is RunPhase.FINISHED
    finally:
        viewing.cancel()
        server.should_exit = True
        await serving
