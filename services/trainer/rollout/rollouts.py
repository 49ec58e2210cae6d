"""Runs the episodes of a training step: all concurrently, without a barrier between turns, and through outages."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from research.episode.agent import Episode, Sampling, SearchAgent
from research.errors import ProtocolError, ResearchError, ServiceBusyError, ServiceError, ServiceRefusalError
from research.http import request_id
from research.questions import Question
from services.trainer.groups import Group, Member
from services.trainer.rollout.branches import Start, fits, root_of, start_of
from services.trainer.rollout.gate import ServiceGate, busy_for_too_long
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
    `seed`, each episode has its own seed, derived from `seed` and its place in the run. Of the members of a group,
    the last `branches` go on from a search result of the others.

    Requests for an episode are named after `run` and its place in it.

    `unusable` counts, by id of the question, the episodes left out because the question or a passage cannot be encoded.
    """

    agent: SearchAgent
    sampling: Sampling
    gate: ServiceGate
    service_retries: int
    versions: Versions
    journal: EpisodeJournal
    seed: int | None
    run: str = "run"
    branches: int = 0
    stragglers: Stragglers | None = None
    infra_errors: int = field(default=0)
    rewards: Rewards = field(default_factory=Rewards)
    unusable: Counter[str] = field(default_factory=Counter)

    async def groups(
        self, step: int, questions: Sequence[Question], size: int, on_episode: Callable[[], None], *, first: int = 0
    ) -> list[Group]:
        """Sample `size` episodes per question, all concurrently; failures may make a group smaller.

        `first` is the number of the first group within its step.

        Raises:
            TrainingError: a service stays away, or the journal cannot be written.
            ServiceRefusalError: a service refuses for good.
        """
        await self.gate.wait_until_ready()
        texts = {number: question.text for number, question in enumerate(questions, first)}
        recorded = await asyncio.to_thread(self.journal.recorded, step, texts, self.holds)
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
                    played.append(self.begin_group(tasks, (step, number), question, size, recorded, finished))
                    await asyncio.sleep(0)  # all at once, they would hold the loop for a fifth of a second
        except* ResearchError as errors:
            raise errors.exceptions[0] from None
        return [
            Group(f"{step}.{number}", question, [each for task in own if (each := task.result()) is not None])
            for number, (question, own) in enumerate(zip(questions, played, strict=True), first)
        ]

    def begin_group(
        self,
        tasks: asyncio.TaskGroup,
        place: tuple[int, int],
        question: Question,
        size: int,
        recorded: Mapping[Place, Episode],
        finished: Callable[[], None],
    ) -> list[asyncio.Task[Member | None]]:
        """Begin the members of a group, by the step it was drawn for and its number there.

        Each ends as a scored episode, `recorded` or sampled now; as None if it failed for good.
        """
        members: list[asyncio.Task[Member | None]] = []
        for number in range(size):
            root = root_of(number, size, self.branches)
            origin = members[root] if root is not None else None
            members.append(tasks.create_task(self._member(*place, number, question, recorded, finished, origin)))
        return members

    async def _member(
        self,
        step: int,
        group: int,
        number: int,
        question: Question,
        recorded: Mapping[Place, Episode],
        finished: Callable[[], None],
        origin: asyncio.Task[Member | None] | None,
    ) -> Member | None:
        """One scored episode, which goes on from that of `origin`, if there is one."""
        root = await origin if origin is not None else None
        episode = recorded.get((group, number))
        if episode is None or not fits(episode, root):
            sampling = self._sampling_at(step, (group, number))
            start = start_of(root, f"{self.seed}/{step}/{group}/{number}")
            # All that the episode asks of policy and retriever has this id in their logs, too.
            with request_id.working_on(f"{self.run[:40]}-{step}.{group}.{number}"):
                episode = await self._sampled(f"{step}.{group}", question, sampling, start)
            if episode is not None:
                await asyncio.to_thread(self.journal.add, step, group, number, episode)
        finished()
        if episode is None:
            return None
        return Member(episode, await self.rewards.score(question, episode), number)

    def holds(self, episode: Episode, ahead: int = 0) -> bool:
        """Whether a recorded episode may still be used: see `Versions.allow`, and it is in the prompt's form of now.

        A branch would go on in another form than its root began in, and be read in that of the root.
        """
        return episode.form == self.agent.prompt.form.name and self.versions.allow(episode, ahead)

    def forget_failures(self) -> int:
        """Begin to count anew; returns the `infra_errors` so far."""
        count, self.infra_errors = self.infra_errors, 0
        self.unusable.clear()
        return count

    def _sampling_at(self, step: int, place: Place) -> Sampling:
        if self.seed is None:
            return self.sampling
        return replace(self.sampling, seed=zlib.crc32(f"{self.seed}/{step}/{place}".encode()) >> 1)

    async def _sampled(self, group: str, question: Question, sampling: Sampling, start: Start) -> Episode | None:
        failures = 0
        while failures <= self.service_retries:
            try:
                episode = await self.agent.for_episode(group).run(question.text, sampling, start())
                self.versions.require(episode)
            except ServiceBusyError as error:  # no failure: the clients have waited for it
                raise busy_for_too_long(error) from error
            except ServiceRefusalError:
                raise  # each episode that needs an answer would be left out, and the run would learn not to search
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
