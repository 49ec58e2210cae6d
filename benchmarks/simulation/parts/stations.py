"""What episodes meet besides policy servers: the trainer's event loop, the retriever, and each other."""

from __future__ import annotations

from simpy import Environment, Event, Timeout


class Line:
    """One after the other, first come first served, `seconds` each."""

    def __init__(self, env: Environment, seconds: float) -> None:
        self._env, self._seconds = env, seconds
        self._free = 0.0

    def serve(self, more: float = 0.0) -> Timeout:
        """An event that comes when it is done; `more` seconds are spent after the line, beside others."""
        self._free = max(self._free, self._env.now) + self._seconds
        return self._env.timeout(self._free - self._env.now + more)


class Barrier:
    """All members wait until each of them has arrived or left."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._members = self._arrived = 0
        self._open = env.event()

    def join(self) -> None:
        self._members += 1

    def arrive(self) -> Event:
        """An event that comes when nobody is missing."""
        opened = self._open
        self._arrived += 1
        self._check()
        return opened

    def leave(self) -> None:
        self._members -= 1
        self._check()

    def _check(self) -> None:
        if self._arrived and self._arrived == self._members:
            opened, self._open, self._arrived = self._open, self._env.event(), 0
            opened.succeed()
