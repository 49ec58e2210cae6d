"""How fast servers and learner go on: at full speed, not at all while weights change, or with half of shared cores."""

from __future__ import annotations

from collections.abc import Generator

from simpy import Environment, Event

from benchmarks.simulation.parts.server import PolicyServer
from benchmarks.simulation.settings import ServerRates


class Cores:
    """The policy servers, and the work of the learner beside them."""

    def __init__(self, env: Environment, rates: ServerRates, servers: int, shared: bool) -> None:
        self._env, self._shared = env, shared
        self._busy, self._speed = 0, 1.0
        self._learning = self._paused = False
        self._changed = env.event()
        self.servers = [PolicyServer(env, rates, self._on_busy) for _ in range(servers)]

    def learn(self, seconds: float) -> Generator[Event, None, None]:
        """The learner works for `seconds` of its own full speed."""
        self._learning = True
        self._apply()
        left = seconds
        while left > 1e-9:
            began, speed = self._env.now, self._learner_speed
            yield self._env.timeout(left / speed) | self._changed
            left -= (self._env.now - began) * speed
        self._learning = False
        self._apply()

    def exchange(self, seconds: float, version: int, keep_kv: bool) -> Generator[Event, None, None]:
        """The servers stand still for `seconds` and go on with `version`."""
        self._paused = True
        self._apply()
        yield self._env.timeout(seconds)
        for server in self.servers:
            server.new_weights(version, keep_kv)
        self._paused = False
        self._apply()

    @property
    def _contended(self) -> bool:
        return self._shared and self._learning and self._busy > 0

    @property
    def _learner_speed(self) -> float:
        return 0.5 if self._contended else 1.0

    def _on_busy(self, change: int) -> None:
        self._busy += change
        if self._shared:
            self._apply()

    def _apply(self) -> None:
        speed = 0.0 if self._paused else 0.5 if self._contended else 1.0
        if speed == self._speed:
            return
        self._speed = speed
        for server in self.servers:
            server.set_speed(speed)
        changed, self._changed = self._changed, self._env.event()
        changed.succeed()
