"""Dynamic sampling: groups without signal are replaced by further questions, round by round, as in DAPO."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from research.questions import Question
from research.questions.sampler import QuestionSampler
from services.trainer.groups import Group

Sample = Callable[[Sequence[Question], int], Awaitable[list[Group]]]


@dataclass(frozen=True, slots=True)
class Sampled:
    """All groups of a step, silent ones included, by number.

    `signal_before` and `signal_after` are the numbers of groups with signal before the first of the `rounds` in which
    silent ones were replaced, and after the last. `dropped` counts groups that were too old to train on.
    """

    groups: list[Group]
    rounds: int
    signal_before: int
    signal_after: int
    dropped: int = 0


async def sample_groups(
    sampler: QuestionSampler, sample: Sample, has_signal: Callable[[Group], bool], count: int, rounds: int
) -> Sampled:
    """Sample groups until `count` have signal, in at most so many further rounds.

    What is drawn follows from the sampler and from the episodes alone. So a run that is killed in any round and finds
    them in its journal draws the same questions again.

    Args:
        sample: the groups of questions; receives the number that the first of them has in its step.
    """
    groups = await sample(await asyncio.to_thread(sampler.draw, count), 0)
    _learn(sampler, groups)
    silent = [group.question for group in groups if not has_signal(group)]
    before, done = count - len(silent), 0
    while silent and done < rounds:
        further = await sample(await asyncio.to_thread(sampler.draw_instead_of, silent), len(groups))
        _learn(sampler, further)
        groups += further
        silent = [group.question for group in further if not has_signal(group)]
        done += 1
    return Sampled(groups, done, before, count - len(silent))


def _learn(sampler: QuestionSampler, groups: Sequence[Group]) -> None:
    """Tell the sampler how these questions were answered."""
    sampler.update_curriculum((group.question, group.success) for group in groups if group.members)
