"""Runs the episodes of a training step: all concurrently, without a barrier between turns, and through outages."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from research.episode.agent import Episode, Sampling, SearchAgent
from research.errors import ProtocolError, ResearchError, ServiceError
from research.questions import Question
from services.trainer.groups import Group, Member
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal, Place
from services.trainer.rollout.rewards import Rewards
from services.trainer.rollout.stragglers import Stragglers
from services.trainer.rollout.versions import Versions, WrongWeightsError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Rollouts:
    """Samples groups of episodes; one that failed because a service is unavailable is sampled again, never scored.

    So is one with tokens of other weights than `versions` allow: a restarted policy server serves its base model until
    it receives the published weights. Episodes that the journal holds from before a kill are not sampled again. With a
    `seed`, each episode has its own seed, derived from `seed` and its place in the run.

    `unusable` counts, by id of the question, the episodes left out because the question or a passage cannot be encoded.
    """

    agent: SearchAgent
    sampling: Sampling
    gate: ServiceGate
    service_retries: int
    versions: Versions
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
        texts = {number: question.text for number, question in enumerate(questions, first)}
        recorded = await asyncio.to_thread(self.journal.recorded, step, texts, self.versions.allow)
        begun = unfinished = len(questions) * size
        finished_one = asyncio.Event()

        def finished() -> None:
            nonlocal unfinished
            unfinished -= 1
            finished_one.set()
            on_episode()

        played: list[list[asyncio.Task[Member | None]]] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                if self.stragglers is not None:
                    tasks.create_task(self.stragglers.cut_last(begun, lambda: unfinished, finished_one))
                for number, question in enumerate(questions, first):
                    places = [(number, place) for place in range(size)]
                    members = [self.member(step, place, question, recorded, finished) for place in places]
                    played.append([tasks.create_task(member) for member in members])
                    await asyncio.sleep(0)  # all at once, they would hold the loop for a fifth of a second
        except* ResearchError as errors:
            raise errors.exceptions[0] from None
        return [
            Group(f"{step}.{number}", question, [each for task in own if (each := task.result()) is not None])
            for number, (question, own) in enumerate(zip(questions, played, strict=True), first)
        ]

    async def member(
        self,
        step: int,
        place: Place,
        question: Question,
        recorded: Mapping[Place, Episode],
        finished: Callable[[], None],
    ) -> Member | None:
        """One scored episode of a group drawn for a step: `recorded`, or sampled now; None if it failed for good."""
        episode = recorded.get(place)
        if episode is None:
            episode = await self._sampled(f"{step}.{place[0]}", question, self._sampling_at(step, place))
            if episode is not None:
                await asyncio.to_thread(self.journal.add, step, *place, episode)
        finished()
        if episode is None:
            return None
        return Member(episode, await self.rewards.score(question, episode), place[1])

    def forget_failures(self) -> int:
        """Begin to count anew; returns the `infra_errors` so far."""
        count, self.infra_errors = self.infra_errors, 0
        self.unusable.clear()
        return count

    def _sampling_at(self, step: int, place: Place) -> Sampling:
        if self.seed is None:
            return self.sampling
        return replace(self.sampling, seed=zlib.crc32(f"{self.seed}/{step}/{place}".encode()) >> 1)

    async def _sampled(self, group: str, question: Question, sampling: Sampling) -> Episode | None:
        failures = 0
        while failures <= self.service_retries:
            try:
                episode = await self.agent.for_episode(group).run(question.text, sampling)
                self.versions.require(episode)
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
