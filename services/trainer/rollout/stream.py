"""Groups under way while the learner updates: each is handed out when its last episode is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from research.episode.agent import Episode
from research.errors import ResearchError
from research.questions import Question
from services.trainer.groups import Group
from services.trainer.rollout.gate import OutageError
from services.trainer.rollout.journal import Place
from services.trainer.rollout.rollouts import Rollouts


def place_of(group: str) -> tuple[int, int]:
    """The step that a group was drawn for, and its number among those (`7.0`: step 7, group 0)."""
    step, _, number = group.partition(".")
    return int(step), int(number)


class GroupStream:
    """The groups under way, by id, in the order in which they were drawn."""

    def __init__(self, rollouts: Rollouts, size: int, on_episode: Callable[[], None]) -> None:
        """`size` is the number of episodes per group; `on_episode` is called whenever one is finished."""
        self._rollouts, self._size, self._on_episode = rollouts, size, on_episode
        self._groups: dict[str, asyncio.Task[Group]] = {}
        self._begun: dict[str, int] = {}  # the version that was published then
        self._former: dict[int, dict[Place, Episode]] = {}  # what journals had from before, by step, read once
        self._finished_one = asyncio.Event()

    async def begin(self, groups: Mapping[str, Question], ahead: int = 0) -> None:
        """Begin groups that are not under way; episodes that the journal has from before a kill are not sampled.

        `ahead` is how many versions the run is going to make again, whose episodes hold, too.
        """
        journal, holds = self._rollouts.journal, partial(self._rollouts.holds, ahead=ahead)
        for group, question in groups.items():
            step, number = place_of(group)
            if step not in self._former:
                self._former[step] = await asyncio.to_thread(journal.held, step, holds)
            if group in self._groups:
                continue
            own = [place for place in self._former[step] if place[0] == number]
            former = {place: self._former[step].pop(place) for place in own}
            recorded = {place: episode for place, episode in former.items() if episode.question == question.text}
            task = asyncio.create_task(self._sample(step, number, question, recorded))
            task.add_done_callback(lambda _: self._finished_one.set())
            self._groups[group], self._begun[group] = task, self._rollouts.versions.published()

    async def next(self, is_wanted: Callable[[Group], bool]) -> Group:
        """Wait for a finished group that is wanted, and hand out the oldest.

        Raises TrainingError: a service stays away, or the journal cannot be written.
        """
        while True:
            self._finished_one.clear()
            finished = [task.result() for task in self._groups.values() if task.done()]
            if (oldest := next(filter(is_wanted, finished), None)) is not None:
                self._leave(oldest.id)
                return oldest
            await self._finished_one.wait()

    async def drop_begun_before(self, version: int) -> list[str]:
        """Break off the unfinished groups that were begun with older weights than these; returns their ids."""
        late = [group for group, task in self._groups.items() if self._begun[group] < version and not task.done()]
        tasks = [self._leave(group) for group in late]
        await _end(tasks)
        return late

    def leave_failed(self) -> list[str]:
        """Forget the groups that an outage ended while no step waited; returns their ids, to be begun again."""
        over = {group: task for group, task in self._groups.items() if task.done() and not task.cancelled()}
        failed = [group for group, task in over.items() if isinstance(task.exception(), OutageError)]
        for group in failed:
            self._leave(group)
            self._former.pop(place_of(group)[0], None)  # members that were finished are in the journal by now
        return failed

    async def close(self) -> None:
        """Break off all groups; what is finished of them stays in the journal."""
        tasks = [self._leave(group) for group in [*self._groups]]
        await _end(tasks)
        self._former.clear()

    def _leave(self, group: str) -> asyncio.Task[Group]:
        del self._begun[group]
        return self._groups.pop(group)

    async def _sample(self, step: int, number: int, question: Question, recorded: Mapping[Place, Episode]) -> Group:
        await self._rollouts.gate.wait_until_ready()
        try:
            async with asyncio.TaskGroup() as tasks:
                members = self._rollouts.begin_group(
                    tasks, (step, number), question, self._size, recorded, self._on_episode
                )
        except* ResearchError as errors:
            raise errors.exceptions[0] from None
        return Group(f"{step}.{number}", question, [each for task in members if (each := task.result()) is not None])


async def _end(tasks: list[asyncio.Task[Group]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
