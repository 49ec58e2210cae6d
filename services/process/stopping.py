"""Ends a command on SIGINT, SIGTERM or SIGHUP: in order if that takes seconds, at once if it takes longer or if a
second signal comes, and always with one line that says what was kept.

A separate thread sees each signal, because Python runs signal handlers only in the main thread, which may be in the
middle of a long computation.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TypeVar

from research.errors import ResearchError

Result = TypeVar("Result")

# From the first signal until the process ends, whatever it is doing. The documentation promises ten.
GRACE_SECONDS = 9.0
# `timeout` and others signal a process and then its group: that is one request, not two.
_SAME_WISH_SECONDS = 0.5
_NOTE_SECONDS = 0.5


class Stopped(BaseException):
    """A signal asked the process to end. Not an `Exception`, so that no error handler swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    def __init__(self) -> None:
        self.number: int | None = None
        self.error: ResearchError | None = None
        self.interrupts: list[Callable[[], object]] = []
        self.notes: list[Callable[[], str]] = []
        self.kills: list[Callable[[], object]] = []
        self.handled = 0
        self.seen = 0
        self.wake: socket.socket | None = None


_state = _State()


def install() -> None:
    """Handle the signals, in the main thread; also SIGINT if the parent ignored it, as a shell does for `&`.

    SIGHUP stays ignored if the parent ignored it: that is what `nohup` is for.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    _state.wake = writing
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _handle)
    threading.Thread(target=_watch, args=(reading,), name="stopping", daemon=True).start()


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Like `asyncio.run`, but a signal cancels the work, which ends in order; then raises Stopped."""

    async def main() -> Result:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        with interrupting(lambda: loop.call_soon_threadsafe(task.cancel)):
            return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise_if_stopping()
        raise


@contextmanager
def interrupting(interrupt: Callable[[], object]) -> Iterator[None]:
    """While the block runs, a signal calls `interrupt` instead of raising Stopped in the main thread."""
    raise_if_stopping()
    _state.interrupts.append(interrupt)
    try:
        yield
    finally:
        _state.interrupts.remove(interrupt)


@contextmanager
def keeping(note: Callable[[], str]) -> Iterator[None]:
    """While the block runs, the last line before the end is `note()`: what was kept, and how to continue."""
    _state.notes.append(note)
    yield
    # Not in a `finally`: after a signal, the note is read once the block has been left.
    _state.notes.remove(note)


@contextmanager
def killing(kill: Callable[[], object]) -> Iterator[None]:
    """While the block runs, `kill` is called before the process ends without waiting: it ends the children."""
    _state.kills.append(kill)
    try:
        yield
    finally:
        _state.kills.remove(kill)


def raise_if_stopping() -> None:
    """Raise Stopped if a signal has asked the process to end."""
    if _state.number is not None:
        raise Stopped(_state.number)


def give_up(error: ResearchError) -> None:
    """End the process as a signal would, from any thread; the error is printed instead of a note."""
    _state.error = error
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def reason() -> ResearchError | None:
    """The error of `give_up`, if that is why the process ends."""
    return _state.error


def last_words() -> str:
    """What was kept and how to continue, from the innermost note that is not empty."""
    for note in reversed(_state.notes):
        with suppress(Exception):
            if text := note():
                return f"stopped: {text}"
    return "stopped"


def leave(code: int) -> NoReturn:
    """End the process now, without waiting for running threads; what they leave unfinished is never used."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _handle(number: int, _: FrameType | None) -> None:
    """Runs in the main thread."""
    _state.handled += 1
    if _state.seen < _state.handled and _state.wake is not None:
        # An event loop (uvloop) has taken the wake-up file descriptor for itself.
        with suppress(OSError):
            _state.wake.send(bytes([number]))
    if _state.number is not None:
        return
    _state.number = number
    if _state.interrupts:
        _state.interrupts[-1]()
    else:
        raise Stopped(number)


def _watch(reading: socket.socket) -> None:
    """Ends the process `GRACE_SECONDS` after the first signal, or at a second one."""
    first: int | None = None
    since = 0.0
    while True:
        left = None if first is None else max(0.0, since + GRACE_SECONDS - time.monotonic())
        if not select.select([reading], [], [], left)[0]:
            assert first is not None
            _end_now(first, "what did not end in time was killed")
        for number in reading.recv(64):
            if number not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                continue
            _state.seen += 1
            if first is None:
                first, since = number, time.monotonic()
            elif time.monotonic() - since > _SAME_WISH_SECONDS:
                _end_now(first, "at once, because of a second signal")


def _end_now(number: int, how: str) -> NoReturn:
    """Kill the children and exit, whatever hangs."""
    for kill in _state.kills:
        with suppress(Exception):
            kill()
    words: list[str] = []
    telling = threading.Thread(target=lambda: words.append(last_words()), daemon=True)
    telling.start()
    telling.join(_NOTE_SECONDS)
    text = _state.error or (words[0] if words else "stopped")
    # Not through rich: a thread that hangs may hold its lock.
    os.write(2, f"{text} ({how})\n".encode())
    os._exit(2 if _state.error else 128 + number)
