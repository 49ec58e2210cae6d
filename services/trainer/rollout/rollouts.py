"""Runs the episodes of a training step: all concurrently, without a barrier between turns, and through outages."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from research.episode.agent import Episode, Sampling, SearchAgent
from research.errors import ProtocolError, ResearchError, ServiceError, TrainingError
from research.questions import Question
from services.trainer.groups import Group, Member
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal, Place
from services.trainer.rollout.rewards import Rewards
from services.trainer.rollout.stragglers import Stragglers

logger = logging.getLogger(__name__)


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


@dataclass(slots=True)
class Rollouts:
    """Samples groups of episodes; one that failed because a service is unavailable is sampled again, never scored.

    So is one with tokens of other weights than the published `version`: a restarted policy server serves its base
    model until it receives the published weights. Episodes that the journal holds from before a kill are not sampled
    again. With a `seed`, each episode has its own seed, derived from `seed` and its place in the run.

    `unusable` counts, by id of the question, the episodes left out because the question or a passage cannot be encoded.
    """

    agent: SearchAgent
    sampling: Sampling
    gate: ServiceGate
    service_retries: int
    version: Callable[[], str]
    journal: EpisodeJournal
    seed: int | None
    stragglers: Stragglers | None = None
    infra_errors: int = field(default=0)
    rewards: Rewards = field(default_factory=Rewards)
    unusable: Counter[str] = field(default_factory=Counter)

    async def groups(
        self, step: int, questions: Sequence[Question], size: int, on_episode: Callable[[], None], *, first: int = 0
    ) -> list[Group]:
        """Sample `size` episodes per question, all concurrently; failures may make a group smaller.

        `first` is the number of the first group within its step.

        Raises TrainingError: a service stays away, or the journal cannot be written.
        """
        await self.gate.wait_until_ready()
        texts = [question.text for question in questions]
        recorded = await asyncio.to_thread(self.journal.recorded, step, texts, self.version(), first=first)
        begun = unfinished = len(questions) * size
        finished_one = asyncio.Event()

        async def member(place: Place, question: Question) -> Member | None:
            episode = recorded.get(place)
            if episode is None:
                episode = await self._sampled(f"{step}.{place[0]}", question, self._sampling_at(step, place))
                if episode is not None:
                    await asyncio.to_thread(self.journal.add, step, *place, episode)
            nonlocal unfinished
            unfinished -= 1
            finished_one.set()
            on_episode()
            if episode is None:
                return None
            return Member(episode, await self.rewards.score(question, episode), place[1])

        played: list[list[asyncio.Task[Member | None]]] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                if self.stragglers is not None:
                    tasks.create_task(self.stragglers.cut_last(begun, lambda: unfinished, finished_one))
                for number, question in enumerate(questions, first):
                    played.append([tasks.create_task(member((number, place), question)) for place in range(size)])
        except* ResearchError as errors:
            raise errors.exceptions[0] from None
        return [
            Group(f"{step}.{number}", question, [each for task in own if (each := task.result()) is not None])
            for number, (question, own) in enumerate(zip(questions, played, strict=True), first)
        ]

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
            except ProtocolError as error:
                self.unusable[question.id] += 1
                logger.warning("an episode of question %s is left out: %s", question.id, error)
                return None
            return episode
        logger.warning("an episode failed %d times and is excluded: %s", failures, question.text)
        return None
