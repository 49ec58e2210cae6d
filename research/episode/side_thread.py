"""Short work off the event loop: one thread for all, which hands back together what it has finished."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

# What is finished waits no longer than this for what comes next.
_TOGETHER_SECONDS = 0.005

Result = TypeVar("Result")

_Finished = tuple[asyncio.Future[Any], Any, BaseException | None]

_work: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]]] = SimpleQueue()
_starting = threading.Lock()
_thread: threading.Thread | None = None


async def in_side_thread(work: Callable[[], Result]) -> Result:
    """Do what takes a millisecond or less and waits for nothing; raises what it raises.

    `asyncio.to_thread` takes two to four times as much of the loop's time, and its threads hold up the loop, since
    all fight for one interpreter lock (docs/adr/080).
    """
    _start()
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    _work.put((future, work))
    return await future


def _start() -> None:
    """Start the thread, once in each process."""
    global _thread
    if _thread is None or not _thread.is_alive():
        with _starting:
            if _thread is None or not _thread.is_alive():
                _thread = threading.Thread(target=_serve, name="side-thread", daemon=True)
                _thread.start()


def _serve() -> None:
    while True:
        finished: defaultdict[asyncio.AbstractEventLoop, list[_Finished]] = defaultdict(list)
        future, work = _work.get()
        until = time.monotonic() + _TOGETHER_SECONDS
        while True:
            finished[future.get_loop()].append((future, *_outcome(work)))
            if _work.empty() or time.monotonic() > until:
                break
            future, work = _work.get()
        for loop, own in finished.items():
            try:
                loop.call_soon_threadsafe(_hand_back, own)
            except RuntimeError:
                continue  # that loop is closed, so nobody waits
        del future, work, finished  # or the last episode would live until there is work again


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _hand_back(finished: list[_Finished]) -> None:
    for future, result, error in finished:
        if future.done():
            continue  # cancelled
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
