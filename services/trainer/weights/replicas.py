"""Several policy servers as one: all in service serve the same version; one that fails is taken out and logged.

A server that was taken out returns as soon as it is ready again and has received the published weights.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from research.clients import INITIAL_VERSION, PolicyAdmin, PolicyClient
from research.episode.agent import Generation, Policy, Sampling
from research.errors import ServiceError
from research.routing import Load, choose
from research.schemas import RECEIVED, WeightsRequest, WeightsStatus
from services.trainer.weights.weight_sync import WeightSync

# How long servers in service wait for the check of one that is not; the check continues afterwards.
_GRACE_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Replica:
    """One policy server: how it is queried, and how it receives weights."""

    client: PolicyClient
    admin: PolicyAdmin
    in_service: bool = True
    given: str = INITIAL_VERSION  # the version that this run gave it; a server may serve the same number of another run
    check: asyncio.Task[None] | None = None  # the one under way, or the last
    fault: str = ""  # what the last check found
    load: Load = field(init=False)

    def __post_init__(self) -> None:
        self.load = Load(self.client.url)


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Group:
    """Episodes of one question, which share a prompt; `first` is where its first turn was sampled."""

    key: str
    first: Replica | None = None


@dataclass(slots=True, eq=False)
class _EpisodePolicy:
    """A `Policy` for the turns of one episode: each goes where the turns before are cached, if it can."""

    replicas: Replicas
    group: _Group
    latest: Replica | None = None

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        """Sample a turn; raises what `PolicyClient` raises."""
        replica = self.replicas.server_for(self.group.key, self.latest or self.group.first, bounded=bool(self.latest))
        self.latest, self.group.first = replica, self.group.first or replica
        started = time.perf_counter()
        with replica.load.request():
            generation = await replica.client.generate(prompt_ids, max_tokens, sampling)
        replica.load.answered(len(generation.token_ids), time.perf_counter() - started)
        return generation


class Replicas:
    """A `Policy` of several servers.

    Args:
        replicas: at least one.
        sync: how weights reach them.
        log: receives a line when one is taken out and when it returns.
    """

    def __init__(self, replicas: Sequence[Replica], sync: WeightSync, log: Callable[[str], None]) -> None:
        self._replicas = list(replicas)
        self.sync = sync
        self._log = log
        self._published: WeightsRequest | None = None
        self._groups: WeakValueDictionary[str, _Group] = WeakValueDictionary()  # those with episodes under way

    def of_episode(self, group: str) -> Policy:
        """The policy for the turns of one episode: they stay on one server, as long as it has not too much to do.

        Episodes of a `group` that are under way at the same time begin on the same server, since they share a prompt.
        """
        return _EpisodePolicy(self, self._groups.setdefault(group, _Group(group)))

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        """Sample a turn that belongs to no episode; the same prompt goes to the same server.

        Raises what `PolicyClient` raises.
        """
        key = f"prompt {zlib.crc32(repr(prompt_ids).encode())}"
        return await self.of_episode(key).generate(prompt_ids, max_tokens, sampling)

    def server_for(self, key: str, stay: Replica | None, *, bounded: bool) -> Replica:
        """The server in service for a turn: `stay` if it can be, else the one that the key belongs to.

        `bounded`: not even `stay` may be overloaded. Raises ServiceError if none is in service.
        """
        serving = [replica for replica in self._replicas if replica.in_service]
        if not serving:
            raise ServiceError("no policy server is in service")
        if stay in serving and not bounded:
            return stay
        loads = [replica.load for replica in serving]
        return serving[loads.index(choose(key, loads, stay.load if stay is not None else None))]

    async def cut(self) -> None:
        """End every turn under way; raises ServiceError if a server does not answer, once the others have been told."""
        told = await asyncio.gather(*(replica.client.cut() for replica in self._replicas), return_exceptions=True)
        for fault in told:
            if fault is not None:
                raise fault

    async def update(self, request: WeightsRequest) -> float:
        """Make every server in service serve a version; those that do not take it go out of service.

        A server that is out of service already may not answer at all; `reconcile` handles it.

        Returns:
            Seconds that the slowest of them was paused.

        Raises:
            ServiceError: none took it; all stay as they were.
        """
        serving = [replica for replica in self._replicas if replica.in_service] or self._replicas
        answers = await self.sync.deliver([replica.admin for replica in serving], request)
        faults = [answer for answer in answers if isinstance(answer, ServiceError)]
        if len(faults) == len(answers):
            raise faults[0]
        self._published = request
        for replica in self._replicas:
            if replica not in serving and replica.in_service:
                self._set_in_service(replica, "it came back during an update", request.version)
        for replica, answer in zip(serving, answers, strict=True):
            self._set_in_service(replica, str(answer) if isinstance(answer, ServiceError) else None, request.version)
        return max(sum(answer.seconds.values()) for answer in answers if not isinstance(answer, ServiceError))

    async def reconcile(self, published: WeightsRequest) -> str | None:
        """Take out servers that are not ready, put back those that are, and send them the published version if needed.

        Returns:
            What is wrong with the first, if none is in service; else None.
        """
        self._published = published
        serving = [self._reconciled(replica, published) for replica in self._replicas if replica.in_service]
        others = [self._reconciled(replica, published) for replica in self._replicas if not replica.in_service]
        if serving:
            await asyncio.wait(serving)
        if others:
            await asyncio.wait(others, timeout=_GRACE_SECONDS if self._any_in_service() else None)
        for check in (*serving, *others):
            if check.done():
                check.result()
        return None if self._any_in_service() else self._replicas[0].fault

    async def unready(self) -> str | None:
        """What is wrong with the first, if none could take weights, whatever version it serves; else None."""
        checks = [_check_receptive(replica) for replica in self._replicas]
        faults = await asyncio.gather(*checks, return_exceptions=True)
        for fault in faults:
            if isinstance(fault, BaseException) and not isinstance(fault, ServiceError):
                raise fault
        return None if None in faults else str(faults[0])

    def _any_in_service(self) -> bool:
        return any(replica.in_service for replica in self._replicas)

    def _reconciled(self, replica: Replica, published: WeightsRequest) -> asyncio.Task[None]:
        """The check of a server; one at a time, since one that hangs may take minutes."""
        if replica.check is None or replica.check.done():
            replica.check = asyncio.create_task(self._reconcile(replica, published))
        return replica.check

    async def _reconcile(self, replica: Replica, published: WeightsRequest) -> None:
        fault = await self._reconcile_one(replica, published)
        while fault is None and self._published is not None and self._published != published:
            published = self._published  # published since then
            fault = await self._reconcile_one(replica, published)
        replica.fault = fault or ""
        self._set_in_service(replica, fault, published.version)

    async def _reconcile_one(self, replica: Replica, published: WeightsRequest) -> str | None:
        """Why a server cannot be in service, or None once it has the published weights."""
        try:
            await _check_receptive(replica)
            if replica.given == published.version and _serves(await replica.admin.weights(), published):
                return None
            [answer] = await self.sync.deliver([replica.admin], published)
        except ServiceError as error:
            return str(error)
        return str(answer) if isinstance(answer, ServiceError) else None

    async def close(self) -> None:
        """Close all connections."""
        checks = [replica.check for replica in self._replicas if replica.check is not None]
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        await asyncio.gather(*(replica.client.close() for replica in self._replicas))
        await asyncio.gather(*(replica.admin.close() for replica in self._replicas))

    def _set_in_service(self, replica: Replica, fault: str | None, version: str) -> None:
        """Put a server in service, or take it out if there is a fault."""
        was, replica.in_service = replica.in_service, fault is None
        if replica.in_service:
            replica.client.weight_version = replica.given = version
        if len(self._replicas) > 1 and was != replica.in_service:
            left = sum(each.in_service for each in self._replicas)
            what = "is in service again" if replica.in_service else f"is taken out of service: {fault}"
            self._log(f"the policy at {replica.client.url} {what}; {left} of {len(self._replicas)} serve")


async def _check_receptive(replica: Replica) -> None:
    """Raise ServiceError if a server is not ready, unless what it lacks is weights: an update may mend it."""
    try:
        await replica.client.check_ready()
    except ServiceError as error:
        if error.status != 503 or (await replica.admin.weights()).fault is None:
            raise


def _serves(served: WeightsStatus, published: WeightsRequest) -> bool:
    """Whether a server answers with exactly these weights: another run's may have the same number."""
    if served.fault is not None:
        return False
    of_this_run = served.source == RECEIVED or Path(served.source) == Path(published.path)
    return served.version == published.version and of_this_run
