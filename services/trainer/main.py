"""Run the trainer as a server that waits for orders, or as a command that trains and exits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from rich.console import Console

from research.errors import ServiceError
from research.settings import Settings
from services.process import stopping
from services.trainer.api.app import create_app
from services.trainer.controller import RunController
from services.trainer.parallel.ranks import Ranks
from services.trainer.processes import leading
from services.trainer.run_dir.checkpoints import CheckpointStore
from services.trainer.run_dir.lock import empty
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.run_dir.size import with_written_size
from services.trainer.status import RunStatus
from services.trainer.telemetry.console import show
from services.web.known_hosts import own_names
from services.web.ports import require_free_port
from services.web.server import new_server, serve_until_stopped

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve status and control until SIGINT or SIGTERM; a run starts on `POST /run/start`.

    A run that was under way when the server ended, however it ended, continues automatically.
    """
    with leading(settings) as ranks:
        if ranks is not None:
            _serve(settings, ranks)


def _serve(settings: Settings, ranks: Ranks) -> None:
    require_free_port(settings.trainer.host, settings.trainer.port, "trainer.port")
    settings = with_written_size(settings)
    controller = RunController(settings, ranks, keeps_orders=True)
    app = create_app(controller, RunDirectory(settings.run_dir), returning=True)
    controller.status.listeners.append(logger.info)
    server = new_server(app, settings.trainer.host, settings.trainer.port, names=own_names(settings))
    going_on = "it continues when the trainer is restarted"
    with stopping.keeping(lambda: kept(settings, going_on) if controller.is_wanted else "no run was under way"):
        serve_until_stopped(server)


View = Callable[[RunStatus, Console], Coroutine[Any, Any, None]]


def train(settings: Settings, *, fresh: bool, console: Console, view: View = show) -> None:
    """Start or resume the run and follow it to its end; the status page is served meanwhile.

    Args:
        fresh: delete the run directory first.
        view: shows the run in the terminal until it is cancelled.

    Raises:
        ResearchError: the run cannot start or continue.
        Stopped: a signal ended it; it resumes from its last checkpoint.
    """
    with leading(settings) as ranks:
        if ranks is not None:
            _lead(settings, ranks, fresh=fresh, console=console, view=view)


def _lead(settings: Settings, ranks: Ranks, *, fresh: bool, console: Console, view: View) -> None:
    record = RunDirectory(settings.run_dir)
    if fresh:
        empty(record.directory)
    settings = with_written_size(settings)
    if record.is_finished(settings.grpo.steps, settings.grpo.minutes):
        console.print(f"{record.directory} is finished; use --fresh to start over, or another name with run=…")
        return
    require_free_port(settings.trainer.host, settings.trainer.port, "trainer.port")
    with stopping.keeping(lambda: kept(settings, "the same command continues it")):
        stopping.run(_train(settings, ranks, console, view))


async def _train(settings: Settings, ranks: Ranks, console: Console, view: View) -> None:
    controller = RunController(settings, ranks)
    app = create_app(controller, RunDirectory(settings.run_dir))
    server = new_server(app, settings.trainer.host, settings.trainer.port, names=own_names(settings), quiet=True)
    controller.start()
    viewing = asyncio.create_task(view(controller.status, console))
    run, serving = asyncio.create_task(controller.wait()), asyncio.create_task(server.serve())
    try:
        await asyncio.wait({run, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not run.done():
            raise ServiceError("the status page could not be served; see the messages above")
        await run
    finally:
        await controller.cancel()
        viewing.cancel()
        server.should_exit = True
        await serving


def kept(settings: Settings, going_on: str) -> str:
    """What a run has on the disk, in one sentence."""
    record, settings = RunDirectory(settings.run_dir), with_written_size(settings)
    if record.is_finished(settings.grpo.steps, settings.grpo.minutes):
        return f"the run is finished, and {record.directory} is complete"
    checkpoints = CheckpointStore(record.checkpoints_dir, settings.checkpoints.keep).all()
    if not checkpoints:
        return f"{record.directory} has no checkpoint yet, so the run will start over; {going_on}"
    step = int(checkpoints[-1].name.split("-")[1])
    return f"{record.directory} keeps the checkpoint after step {step} and every episode since; {going_on}"
