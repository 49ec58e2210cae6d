"""Runs the episodes of a training step: all concurrently, without a barrier between turns, and through outages."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from research.episode.agent import Episode, Sampling, SearchAgent
from research.errors import ServiceError, TrainingError
from research.questions import Question
from services.trainer.groups import Group, Member
from services.trainer.rollout.journal import EpisodeJournal, Place
from services.trainer.rollout.rewards import Rewards
from services.trainer.status import RunStatus

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


class WrongWeightsError(TrainingError):
    """A policy server sampled with other weights than the published ones."""


def require_version(episodes: Sequence[Episode], version: str) -> None:
    """Raise WrongWeightsError if other weights than `version` wrote any token."""
    others = {written for episode in episodes for written in episode.weight_versions} - {version}
    if others:
        raise WrongWeightsError(
            f"the policy served weight version {', '.join(sorted(others))} instead of {version}; was it restarted? "
            "Start the run again: it publishes its weights and continues from the last checkpoint"
        )


class ServiceGate:
    """Holds episodes back while a service is down, so that they pause together instead of failing one by one."""

    def __init__(self, check_services: Callable[[], Awaitable[str | None]], patience: float, status: RunStatus) -> None:
        """`check_services` returns what is down or serves other weights, or None; `patience` is in seconds."""
        self._check_services = check_services
        self._patience = patience
        self._status = status
        self._lock = asyncio.Lock()

    async def wait_until_ready(self, unready: Callable[[], Awaitable[str | None]] | None = None) -> bool:
        """Return once every service is ready (or all that `unready` checks); True if one was down.

        Raises TrainingError after `patience`.
        """
        async with self._lock:
            started = time.monotonic()
            while down := await (unready or self._check_services)():
                if self._status.waiting_for is None:
                    self._status.log(f"training pauses: {down}; it continues when the service is back")
                self._status.waiting_for = down
                if time.monotonic() - started > self._patience:
                    raise TrainingError(f"{down}; waited {self._patience:g} s (trainer.outage_timeout)")
                await asyncio.sleep(_POLL_SECONDS)
            was_down, self._status.waiting_for = self._status.waiting_for is not None, None
            if was_down:
                self._status.log("every service is ready again; training continues")
            return was_down


@dataclass(slots=True)
class Rollouts:
    """Samples groups of episodes; one that failed because a service is unavailable is sampled again, never scored.

    So is one with tokens of other weights than the published `version`: a restarted policy server serves its base
    model until it receives the published weights. Episodes that the journal holds from before a kill are not sampled
    again. With a `seed`, each episode has its own seed, derived from `seed` and its place in the run.
    """

    agent: SearchAgent
    sampling: Sampling
    gate: ServiceGate
    service_retries: int
    version: Callable[[], str]
    journal: EpisodeJournal
    seed: int | None
    infra_errors: int = field(default=0)
    rewards: Rewards = field(default_factory=Rewards)

    async def groups(
        self, step: int, questions: Sequence[Question], size: int, on_episode: Callable[[], None]
    ) -> list[Group]:
        """Sample `size` episodes per question, all concurrently; failures may make a group smaller."""

        await self.gate.wait_until_ready()
        texts = [question.text for question in questions]
        recorded = await asyncio.to_thread(self.journal.recorded, step, texts, self.version())

        async def member(place: Place, question: Question) -> Member | None:
            episode = recorded.get(place)
            if episode is None:
                episode = await self._sampled(f"{step}.{place[0]}", question, self._sampling_at(step, place))
                if episode is not None:
                    await asyncio.to_thread(self.journal.add, step, *place, episode)
            on_episode()
            if episode is None:
                return None
            return Member(episode, await self.rewards.score(question, episode), place[1])

        async def group(number: int, question: Question) -> Group:
            members = await asyncio.gather(*(member((number, place), question) for place in range(size)))
            return Group(f"{step}.{number}", question, [played for played in members if played is not None])

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(group(number, question)) for number, question in enumerate(questions)]
        return [task.result() for task in running]

    def _sampling_at(self, step: int, place: Place) -> Sampling:
        if self.seed is None:
            return self.sampling
        return replace(self.sampling, seed=zlib.crc32(f"{self.seed}/{step}/{place}".encode()) >> 1)

    async def _sampled(self, group: str, question: Question, sampling: Sampling) -> Episode | None:
        failures = 0
        while failures <= self.service_retries:
            try:
                episode = await self.agent.for_episode(group).run(question.text, sampling)
                require_version([episode], self.version())
            except (ServiceError, WrongWeightsError) as error:
                self.infra_errors += 1
                logger.info("an episode is sampled again: %s", error)
                # While a service is down, retries are free; failures count only while all services are up.
                failures += not await self.gate.wait_until_ready()
                continue
            return episode
        logger.warning("an episode failed %d times and is excluded: %s", failures, question.text)
        return None
