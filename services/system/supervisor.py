"""Restarts children that die, with back-off, gives up on one that dies again and again, and bounds their logs."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from research.errors import ServiceError
from services.process import stopping
from services.process.children import how_it_ended
from services.process.log_files import bound_log

_POLL_SECONDS = 0.5
_DEATHS = 5
# A service that was ready for this long was healthy; a later death has another cause.
_WELL_SECONDS = 60.0
_MAX_BACK_OFF_SECONDS = 30.0


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


class Supervised(Protocol):
    """What is known of a child process."""

    @property
    def process(self) -> subprocess.Popen[bytes]: ...
    @property
    def log(self) -> Path: ...


Child = TypeVar("Child", bound=Supervised)


@dataclass(slots=True)
class _Health:
    deaths: int = 0
    due: float | None = None  # when it is restarted
    ready_since: float | None = 0.0


class Supervisor(threading.Thread, Generic[Child]):
    """Watches children in a thread until `end`.

    Args:
        children: by name; a restarted child takes the place of the dead one.
        start: starts one, by name.
        is_ready: whether a child answers.
        log: receives one line per event.
        give_up: called with an error when a child has died five times in a row; it ends the process.
    """

    def __init__(
        self,
        children: MutableMapping[str, Child],
        *,
        start: Callable[..., Child],
        is_ready: Callable[[Child], bool],
        log: Callable[[str], None],
        give_up: Callable[[ServiceError], None] = stopping.give_up,
        back_off: float = 1.0,
    ) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._children, self._start, self._is_ready = children, start, is_ready
        self._say, self._give_up, self._back_off = log, give_up, back_off
        self._health = {name: _Health() for name in children}
        self._ending = threading.Event()

    def run(self) -> None:
        while not self._ending.wait(_POLL_SECONDS):
            for name in list(self._children):
                if not self._look_after(name, self._health[name]):
                    # The kernel ends this thread's children when the thread ends, so it stays.
                    self._ending.wait()
                    return

    def end(self) -> None:
        """Stop watching; returns when the thread has ended."""
        self._ending.set()
        self.join()

    def _look_after(self, name: str, health: _Health) -> bool:
        """Check one child once; False if it was given up."""
        child, now = self._children[name], time.monotonic()
        bound_log(child.log)
        if health.due is not None:
            if now < health.due:
                return True
            health.due = None
            try:
                self._children[name] = self._start(name)
            except OSError as error:
                return self._died(name, health, f"could not be started ({error})")
            return True
        code = child.process.poll()
        if code is not None:
            return self._died(name, health, how_it_ended(code))
        if health.ready_since is None and self._is_ready(child):
            health.ready_since = now
            self._say(f"the {name} is ready again")
        elif health.ready_since is not None and now - health.ready_since > _WELL_SECONDS:
            health.deaths = 0
        return True

    def _died(self, name: str, health: _Health, how: str) -> bool:
        """Plan the next start; False if there have been too many."""
        log = self._children[name].log
        health.deaths += 1
        health.ready_since = None
        if health.deaths >= _DEATHS:
            self._give_up(
                ServiceError(
                    f"the {name} {how}, the {_DEATHS}th time in a row; the end of {log}:\n{tail(log)}\n"
                    "all services were stopped; fix the cause and start again"
                )
            )
            return False
        wait = min(self._back_off * 2 ** (health.deaths - 1), _MAX_BACK_OFF_SECONDS)
        health.due = time.monotonic() + wait
        self._say(f"the {name} {how}; it is restarted in {wait:.0f} s (log: {log})")
        return True
