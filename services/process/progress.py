"""The progress of long work: a bar in a terminal; elsewhere, as in a log file, one line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10.0

Advance = Callable[[int], None]


@contextmanager
def progress(what: str, unit: str, *, total: int | None = None, done: int = 0) -> Iterator[Advance]:
    """Show progress on standard error while the block runs; call the yielded function with the count of each part done.

    Args:
        total: number of units; None if unknown.
        done: units that were done before.
    """
    if not sys.stderr.isatty():
        yield Lines(what, unit, total=total, done=done).advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


class Lines:
    """Prints progress as a line, at most every ten seconds.

    Args:
        say: receives each line; by default prints it to standard error.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        *,
        total: int | None = None,
        done: int = 0,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._unit, self._total = what, unit, total
        self._first, self._done = done, done
        self._say, self._clock = say, clock
        self._started = self._last = clock()

    def advance(self, count: int = 1) -> None:
        """Count the units done, and print a line if it is time."""
        self._done += count
        now = self._clock()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        if self._total is None:
            self._say(f"{self._what}: {self._done:,} {self._unit}")
            return
        rate = (self._done - self._first) / (now - self._started)
        left = f", about {(self._total - self._done) / rate:.0f} s left" if rate > 0 else ""
        self._say(f"{self._what}: {self._done:,} of {self._total:,} {self._unit}{left}")
