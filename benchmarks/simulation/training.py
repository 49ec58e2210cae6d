"""A training run in simulated time: groups begin as far ahead as staleness allows, and are trained on as they end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from simpy import Environment, Event, Resource

from benchmarks.simulation.outcome import Outcome, Tally, outcome
from benchmarks.simulation.parts.cores import Cores
from benchmarks.simulation.parts.routing import Router
from benchmarks.simulation.parts.server import Request
from benchmarks.simulation.parts.stations import Barrier, Line
from benchmarks.simulation.settings import Conduct, Machines
from benchmarks.simulation.workload import EpisodeShape, GroupShape

_NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class _Ended:
    """A sampled group; `versions` are those of the first token of each of its episodes."""

    shape: GroupShape
    versions: list[int]


def simulate(
    machines: Machines, conduct: Conduct, groups: Iterator[GroupShape], steps: int, *, warming: int = 0, seed: int = 0
) -> Outcome:
    """Run `warming` steps that do not count and `steps` that do."""
    return outcome(_Training(machines, conduct, groups, seed).run(warming + steps), machines.servers, warming)


class _Training:
    def __init__(self, machines: Machines, conduct: Conduct, groups: Iterator[GroupShape], seed: int) -> None:
        self._env = Environment()
        self._machines, self._conduct, self._groups = machines, conduct, groups
        self._cores = Cores(self._env, machines.server, machines.servers, machines.shared)
        self._router = Router(machines.servers, conduct.routing, random.Random(seed))
        self._coordination = Line(self._env, machines.coordination)
        self._retriever = Line(self._env, 1 / machines.searches_per_second)
        self._barrier = Barrier(self._env)
        self._slots = Resource(self._env, machines.servers * (conduct.at_once or _NO_LIMIT))
        self._version = self._begun = self._numbered = self._dropped = self._redrawn = self._signal = 0
        self._refills = conduct.refill * conduct.questions
        self._ready: list[_Ended] = []
        self._news = self._env.event()
        self._learned = 0.0
        self._staleness: Counter[int] = Counter()
        self._tallies = [Tally()]

    def run(self, steps: int) -> list[Tally]:
        self._env.run(until=self._env.process(self._train(steps)))
        return self._tallies

    def _train(self, steps: int) -> Generator[Event, None, None]:
        learner, conduct = self._machines.learner, self._conduct
        self._begin_groups()
        for step in range(1, steps + 1):
            while len(self._ready) < conduct.questions:
                yield self._news
            batch, self._ready = self._ready[: conduct.questions], self._ready[conduct.questions :]
            self._count(batch)
            began = self._env.now
            yield from self._cores.learn(learner.update(sum(group.shape.computed for group in batch)))
            self._learned += self._env.now - began
            yield self._env.timeout(learner.publish - learner.pause)
            self._version += 1
            yield from self._cores.exchange(learner.pause, self._version, conduct.keep_kv)
            self._refills = conduct.refill * conduct.questions
            self._drop_stale()
            if conduct.staleness:
                self._begin_groups()
            if step % learner.checkpoint_interval == 0:
                yield self._env.timeout(learner.checkpoint)
            self._begin_groups()
            self._tally()

    def _begin_groups(self) -> None:
        """Begin as many as may be: those of one step, and of as many steps ahead as staleness allows."""
        while self._begun < (self._version + self._conduct.staleness + 1) * self._conduct.questions:
            self._begun += 1
            self._numbered += 1
            self._env.process(self._group(self._numbered, next(self._groups)))

    def _group(self, number: int, shape: GroupShape) -> Generator[Event, None, None]:
        if self._conduct.turn_barrier:
            for _ in shape.episodes:
                self._barrier.join()
        ended = _Ended(shape, [])
        episodes = (
            self._episode(number, place, episode, ended.versions) for place, episode in enumerate(shape.episodes)
        )
        yield self._env.all_of([self._env.process(episode) for episode in episodes])
        if not shape.signal and self._refills > 0:
            self._refills -= 1
            self._redrawn += 1
            self._replace()
        elif self._too_stale(ended):
            self._dropped += 1
            self._replace()
        else:
            self._ready.append(ended)
            news, self._news = self._news, self._env.event()
            news.succeed()

    def _episode(self, group: int, place: int, shape: EpisodeShape, versions: list[int]) -> Generator[Event, int, None]:
        """Run one episode, and append the version of its first token to `versions`."""
        barrier = self._barrier if self._conduct.turn_barrier else None
        server, context = None, shape.prompt
        slot = self._slots.request()
        yield slot
        for number, turn in enumerate(shape.turns):
            if barrier:
                yield barrier.arrive()
            yield self._coordination.serve()
            server = self._router.choose(group, server)
            request = Request((group, place), group, context, shape.prompt, turn.sampled)
            sampled_by = yield self._cores.servers[server].generate(request)
            self._router.ended(server)
            if number == 0:
                versions.append(sampled_by)
            context += turn.sampled + turn.result
            if turn.search is not None:
                if barrier:
                    yield barrier.arrive()
                yield self._retriever.serve(turn.search if self._machines.search is None else self._machines.search)
        self._slots.release(slot)
        if barrier:
            barrier.leave()

    def _too_stale(self, group: _Ended) -> bool:
        return self._version - min(group.versions) > self._conduct.staleness

    def _drop_stale(self) -> None:
        """Groups that wait for their update may have become too old for it."""
        fresh = [group for group in self._ready if not self._too_stale(group)]
        self._dropped += len(self._ready) - len(fresh)
        self._begun -= len(self._ready) - len(fresh)
        self._ready = fresh

    def _replace(self) -> None:
        self._begun -= 1
        self._begin_groups()

    def _count(self, batch: list[_Ended]) -> None:
        self._signal += sum(group.shape.signal for group in batch)
        for group in batch:
            if group.shape.signal:
                self._staleness.update(self._version - version for version in group.versions)

    def _tally(self) -> None:
        servers = self._cores.servers
        self._tallies.append(
            Tally(
                now=self._env.now,
                server_seconds=sum(server.busy_seconds for server in servers),
                learner_seconds=self._learned,
                sampled=sum(server.sampled for server in servers),
                prompted=sum(server.prompted for server in servers),
                prefilled=sum(server.prefilled for server in servers),
                recomputed=sum(server.recomputed for server in servers),
                signal=self._signal,
                dropped=self._dropped,
                redrawn=self._redrawn,
                staleness=Counter(self._staleness),
            )
        )
