"""Rollout and update at the same time: a step takes the groups that are finished, while others are under way.

At most `questions_per_step` times `max_staleness` + 1 groups are drawn and not yet trained on when a step begins, and
each that a step takes is replaced when the new weights are published. So a group that keeps up is trained on at most
`max_staleness` updates after its first token; one that does not is dropped, and another question asked instead.

Short episodes are finished first. So that no step is made of the easy questions and the next of the hard ones, a step
takes groups of each kind of question in the shares in which they are under way, which are those of the mix.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from research.episode.agent import Episode
from research.questions import Question
from research.questions.sampler import QuestionSampler, apportion
from research.settings.training import GrpoConfig
from services.trainer.groups import Group, Member
from services.trainer.rollout.batches import Taken, TakenGroups
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.refill import Sampled
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.stream import GroupStream, place_of
from services.trainer.status import RunPhase, RunStatus


@dataclass(slots=True)
class _Step:
    """What a step has taken so far.

    Attributes:
        taken: groups in the order in which they were taken or dropped.
        spent: questions to replace once the new weights are published; those of other groups were replaced at once.
        replaced: the number of silent groups among the others.
        left: how many groups of each kind it is still to have.
        rare: kinds that are under way, and too few of them for a share.
    """

    left: Counter[str]
    rare: frozenset[str]

    groups: list[Group] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    spent: list[Question] = field(default_factory=list)
    with_signal: list[bool] = field(default_factory=list)
    replaced: int = 0


class OverlappedGroups:
    """Where the groups of each step come from if episodes may be older than the weights that they train."""

    def __init__(
        self,
        rollouts: Rollouts,
        sampler: QuestionSampler,
        record: TakenGroups,
        has_signal: Callable[[Group], bool],
        grpo: GrpoConfig,
        drawn: dict[str, Question],
        status: RunStatus,
    ) -> None:
        """`drawn` holds the groups that are drawn and not yet taken, by id, oldest first; checkpoints keep it."""
        self._rollouts, self._sampler, self._record = rollouts, sampler, record
        self._has_signal, self._grpo, self._drawn, self._status = has_signal, grpo, drawn, status
        self._stream = GroupStream(rollouts, grpo.group_size, self._finished_one)
        self._started = False
        self._known: dict[int, list[Taken]] = {}  # what later steps took before a kill
        self._spent: list[Question] = []
        self._next = 0, 0  # the step and number of the next group that is drawn

    async def sample(self, step: int) -> Sampled:
        """The groups of a step: those that it took before a kill, or the first that are finished and not too old.

        Raises TrainingError: a service stays away, or the journal cannot be written.
        """
        if not self._started:
            await self._start(step)
        elif failed := self._stream.leave_failed():  # in an outage that a pause or an update outlasted
            await self._begin({group: self._drawn[group] for group in failed})
        wanted = self._grpo.questions_per_step
        kinds = Counter(question.kind for question in self._drawn.values())
        shares = apportion(kinds, wanted)
        state = _Step(Counter(shares), frozenset(kind for kind, share in shares.items() if share == 0))
        self._status.total = wanted * self._grpo.group_size
        if (known := self._known.get(step)) is not None:
            # Known until it is taken: a silent group's substitute may be in it, too, and must not be begun again.
            await self._take_again(step, known, state)
            self._known.pop(step, None)
        if self._is_short(state):
            await self._take_finished(state)
            await asyncio.to_thread(self._record.write, step, state.taken)
        self._spent = state.spent
        return Sampled(
            state.groups,
            rounds=math.ceil(state.replaced / wanted),
            signal_before=sum(state.with_signal[:wanted]),
            signal_after=sum(state.with_signal),
            dropped=sum(each.members is None for each in state.taken),
        )

    async def replace(self, step: int) -> None:
        """Begin groups in place of those that a finished step took, as many as later steps may need.

        None in place of those that were drawn for a `max_staleness` that was larger then.
        """
        at_once = min(self._rollouts.versions.max_staleness + 1, self._grpo.steps - step)
        needed = at_once * self._grpo.questions_per_step - len(self._drawn)
        self._next = step + 1, 0
        await self._draw_instead_of(self._spent[: max(0, needed)])
        self._spent = []

    async def close(self) -> None:
        """Break off what is under way; the next step begins it again, unless `drawn` is emptied."""
        await self._stream.close()
        self._started, self._spent = False, []
        self._known.clear()

    def _finished_one(self) -> None:
        # Other phases count other things; and more are under way than a step waits for.
        if self._status.phase is RunPhase.ROLLOUT and self._status.done < self._status.total:
            self._status.advance()

    async def _start(self, step: int) -> None:
        """Begin what was drawn before, except what later steps are known to take, and draw what is missing."""
        self._started = True
        numbers = [number for drawn_for, number in map(place_of, self._drawn) if drawn_for == step]
        self._next = step, 1 + max(numbers, default=-1)
        at = step
        while (taken := await asyncio.to_thread(self._record.read, at)) is not None:
            self._known[at] = taken
            at += 1
        await self._begin(self._drawn)
        at_once = min(self._rollouts.versions.max_staleness + 1, self._grpo.steps - step + 1)
        each = self._grpo.questions_per_step
        missing = at_once * each - len(self._drawn)
        # A step's at a time, so that all together are mixed as each of them is.
        for first in range(0, missing, each):
            await self._add(await asyncio.to_thread(self._sampler.draw, min(each, missing - first)))

    async def _take_again(self, step: int, known: list[Taken], state: _Step) -> None:
        """Take what a step took before a kill, as far as it is on the disk."""
        held = await asyncio.to_thread(_episodes, self._rollouts.journal, step, known)
        for each in known:
            if (question := self._drawn.get(each.group)) is None:
                break
            if each.members is None:
                await self._drop(each.group, state)
                continue
            asked = (question.text, self._rollouts.agent.prompt.form.name)
            episodes = [(n, own) for n, own in sorted(held[each.group].items()) if (own.question, own.form) == asked]
            if len(episodes) < each.members:
                break
            score = self._rollouts.rewards.score
            members = [Member(episode, await score(question, episode), place) for place, episode in episodes]
            await self._take(Group(each.group, question, members), state)
        else:
            return
        self._status.log(f"step {step}: not all of what it took before is on the disk; it takes what is finished now")
        self._known.clear()
        await asyncio.to_thread(self._record.delete_from, step)
        await self._begin(self._drawn)

    async def _take_finished(self, state: _Step) -> None:
        """Take groups as they finish, and drop those that are too old."""
        versions = self._rollouts.versions
        for group in await self._stream.drop_begun_before(versions.published() - versions.max_staleness):
            await self._drop(group, state)
        while self._is_short(state):
            finished = await self._stream.next(lambda group: self._is_wanted(group, state))
            if not all(versions.holds(member.episode) for member in finished.members):
                await self._drop(finished.id, state)
            else:
                await self._take(finished, state)

    def _is_wanted(self, group: Group, state: _Step) -> bool:
        """Whether a step takes a finished group.

        It does if it still needs its kind, or needs kinds that nothing under way has (one was dropped for good). It
        also takes a rare one that would be too old for the next step: no step has a share for it.
        """
        left, later, versions = state.left, self._known_later(), self._rollouts.versions
        if left[group.question.kind] > 0:
            return True
        if group.question.kind in state.rare and any(
            versions.staleness(each.episode) >= versions.max_staleness for each in group.members
        ):
            return True
        return not any(left[question.kind] > 0 for each, question in self._drawn.items() if each not in later)

    def _is_short(self, state: _Step) -> bool:
        return len(state.groups) - state.replaced < self._grpo.questions_per_step

    async def _take(self, group: Group, state: _Step) -> None:
        """Let a step have a group. A silent one is replaced at once while `grpo.refill_rounds` allow."""
        del self._drawn[group.id]
        has_signal = self._has_signal(group)
        state.groups.append(group)
        state.taken.append(Taken(group.id, len(group.members)))
        state.with_signal.append(has_signal)
        if group.members:
            self._sampler.update_curriculum([(group.question, group.success)])
        if has_signal or state.replaced >= self._grpo.refill_rounds * self._grpo.questions_per_step:
            state.spent.append(group.question)
            state.left[group.question.kind] -= 1
        else:
            state.replaced += 1
            await self._draw_instead_of([group.question])

    async def _drop(self, group: str, state: _Step) -> None:
        question = self._drawn.pop(group)
        state.taken.append(Taken(group, None))
        await self._draw_instead_of([question])

    async def _draw_instead_of(self, questions: Sequence[Question]) -> None:
        await self._add(await asyncio.to_thread(self._sampler.draw_instead_of, questions))

    async def _add(self, questions: Sequence[Question]) -> None:
        step, first = self._next
        self._next = step, first + len(questions)
        groups = {f"{step}.{number}": question for number, question in enumerate(questions, first)}
        self._drawn.update(groups)
        await self._begin(groups)

    async def _begin(self, groups: Mapping[str, Question]) -> None:
        """Begin groups, except those under way, and those that a later step is known to take."""
        known = self._known_later()
        begun = {group: question for group, question in groups.items() if group not in known}
        await self._stream.begin(begun, ahead=len(self._known))

    def _known_later(self) -> set[str]:
        """The groups that later steps took before a kill."""
        return {each.group for taken in self._known.values() for each in taken}


def _episodes(journal: EpisodeJournal, step: int, taken: Sequence[Taken]) -> defaultdict[str, dict[int, Episode]]:
    """The episodes of a step, by group and place: from its record, or from the journals of its groups."""
    held: defaultdict[str, dict[int, Episode]] = defaultdict(dict)
    for drawn_for, (number, place), episode in journal.of_finished_step(step):
        held[f"{drawn_for}.{number}"][place] = episode
    if not held:
        for drawn_for in {place_of(each.group)[0] for each in taken}:
            for (number, place), episode in journal.of_journal(drawn_for):
                held[f"{drawn_for}.{number}"][place] = episode
    return held
