"""Silent groups are replaced by further questions, and a run killed in any round draws the same ones again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from research.errors import ServiceError
from research.questions import Question
from research.questions.sampler import QuestionSampler
from services.trainer.groups import Group
from services.trainer.learner.advantages import has_signal
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.refill import Sampled, sample_groups
from services.trainer.rollout.versions import Versions
from tests.support.scored import GOLD, answered, member
from tests.support.tiny_model import tiny_settings

SIZE = 4
# The share of a question's episodes that are right: by its id, every third group has signal.
RIGHT = {str(number): (0, 2, 4)[number % 3] for number in range(60)}


def questions() -> list[Question]:
    return [Question(number, f"Question {number}?", (GOLD,), kind=f"kind{int(number) % 2}") for number in RIGHT]


class Rollout:
    """Samples by the table above, with a real journal, until it has sampled so many episodes and is killed."""

    def __init__(self, directory: Path, dies_after: int | None = None) -> None:
        self.journal = EpisodeJournal(directory)
        self.left, self.asked = dies_after, Counter[str]()

    async def sample(self, drawn: Sequence[Question], first: int) -> list[Group]:
        texts = {number: question.text for number, question in enumerate(drawn, first)}
        recorded = self.journal.recorded(1, texts, Versions(lambda: 1).allow)
        groups = []
        for number, question in enumerate(drawn, first):
            members = []
            for place in range(SIZE):
                episode = recorded.get((number, place))
                if episode is None:
                    if self.left == 0:
                        raise ServiceError("killed")
                    self.left = None if self.left is None else self.left - 1
                    episode = answered(GOLD if place < RIGHT[question.id] else "Rome")
                    episode.question = question.text
                    self.asked[question.id] += 1
                    self.journal.add(1, number, place, episode)
                members.append(member(episode, place))
            groups.append(Group(f"1.{number}", question, members))
        return groups


def step(directory: Path, rollout: Rollout, rounds: int, mix: dict[str, float] | None = None) -> Sampled:
    grpo = tiny_settings(directory, f"grpo.group_size={SIZE}", "grpo.train_per_group=None").grpo
    sampler = QuestionSampler(questions(), mix or {}, 5, candidates=2, settled_share=0.5)
    return asyncio.run(sample_groups(sampler, rollout.sample, lambda group: has_signal(group, grpo), 12, rounds))


def test_without_refill_a_step_asks_its_questions_once(tmp_path: Path) -> None:
    sampled = step(tmp_path, Rollout(tmp_path), 0)
    assert (len(sampled.groups), sampled.rounds) == (12, 0)
    assert sampled.signal_before == sampled.signal_after < 12


def test_silent_groups_are_replaced_until_all_have_signal_and_are_kept_in_the_record(tmp_path: Path) -> None:
    sampled = step(tmp_path, Rollout(tmp_path), 50)
    with_signal = [group for group in sampled.groups if len(set(group.rewards)) > 1]
    assert len(with_signal) == sampled.signal_after == 12
    assert sampled.signal_before < 12 < len(sampled.groups)
    assert 0 < sampled.rounds < 50
    assert [group.id for group in sampled.groups] == [f"1.{number}" for number in range(len(sampled.groups))]


def test_rounds_are_limited(tmp_path: Path) -> None:
    sampled = step(tmp_path, Rollout(tmp_path), 1)
    assert sampled.rounds == 1
    assert len(sampled.groups) == 12 + (12 - sampled.signal_before)
    assert sampled.signal_before <= sampled.signal_after < 12


def test_refill_keeps_the_mix_of_what_is_trained_on(tmp_path: Path) -> None:
    sampled = step(tmp_path, Rollout(tmp_path), 50, {"kind0": 0.75, "kind1": 0.25})
    assert Counter(g.question.kind for g in sampled.groups if len(set(g.rewards)) > 1) == {"kind0": 9, "kind1": 3}


@pytest.mark.parametrize("dies_after", [0, 17, 48, 49, 70, 90])
def test_a_step_that_is_killed_in_any_round_asks_the_same_questions_again(tmp_path: Path, dies_after: int) -> None:
    whole = step(tmp_path, Rollout(tmp_path / "whole"), 50)
    with pytest.raises(ServiceError, match="killed"):
        step(tmp_path, Rollout(tmp_path / "killed", dies_after), 50)
    resumed = Rollout(tmp_path / "killed")
    assert step(tmp_path, resumed, 50) == whole
    assert resumed.asked.total() == len(whole.groups) * SIZE - dies_after  # none is sampled twice
