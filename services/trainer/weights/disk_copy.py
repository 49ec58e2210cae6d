"""Writes to the disk while the run goes on: a copy of published weights, the episodes of a step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

# SIGINT ends a run within ten seconds, whatever it is writing.
_LAST_SECONDS = 3.0


class DiskCopy:
    """One piece of writing at a time, in a thread that ends with the process.

    What it writes must be under another name until it is complete (`atomic_checksummed_dir`, `atomic_write`).
    """

    def __init__(self) -> None:
        self._writing: Future[None] = Future()
        self._writing.set_result(None)

    async def written(self) -> None:
        """Return once everything is on the disk. Raises what went wrong, each time until `begin`."""
        await asyncio.shield(asyncio.wrap_future(self._writing))

    def begin(self, work: Callable[[], None]) -> None:
        """Begin to write; what was begun before has ended."""
        writing: Future[None] = Future()
        writing.set_running_or_notify_cancel()  # nobody can cancel it

        def run() -> None:
            try:
                work()
            except Exception as error:
                writing.set_exception(error)
            else:
                writing.set_result(None)

        self._writing = writing
        threading.Thread(target=run, name="disk-copy", daemon=True).start()

    async def close(self) -> None:
        """Give what is being written a last few seconds; what is unfinished is believed by nobody."""
        await asyncio.to_thread(wait, [self._writing], _LAST_SECONDS)
