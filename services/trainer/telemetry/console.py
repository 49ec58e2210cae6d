"""The terminal's view of a run: a line per event, and a bar for the current phase."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.process.progress import LINE_SECONDS
from services.process.terminal import escape_control_chars
from services.trainer.status import RunStatus

_REFRESH_SECONDS = 0.25


async def lines_of(status: RunStatus, log: Callable[[str], None]) -> None:
    """Log every ten seconds how far the current phase is, until cancelled."""
    while True:
        before = (status.phase, status.step)
        await asyncio.sleep(LINE_SECONDS)
        if status.total and (status.phase, status.step) == before:
            log(f"step {status.step} {status.phase}: {status.done} of {status.total}")


async def show(status: RunStatus, console: Console) -> None:
    """Follow a run until cancelled. Without a terminal it prints only lines."""

    def show_line(line: str) -> None:
        console.print(escape_control_chars(line), highlight=False, markup=False, soft_wrap=True)

    status.listeners.append(show_line)
    if not console.is_terminal:
        await lines_of(status, show_line)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        phase = None
        while True:
            if (status.phase, status.step) != phase:
                phase = (status.phase, status.step)
                progress.reset(task, description=f"step {status.step} {status.phase}", total=status.total or None)
            progress.update(task, completed=status.done, total=status.total or None)
            await asyncio.sleep(_REFRESH_SECONDS)
