"""What a step trains on, the control with shuffled rewards, and what a step is measured by."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.episode.agent import StopReason
from research.settings import Settings
from research.settings.training import GrpoConfig
from services.trainer.groups import Group
from services.trainer.learner.advantages import TrainingBatch, compute_advantages, rewards_of, shuffle_rewards
from services.trainer.learner.estimators import group_advantages
from services.trainer.telemetry.metrics import step_metrics, summary_line, supervised_metrics
from tests.support.scored import ROLLOUT, answered, group, member
from tests.support.tiny_model import tiny_settings

RIGHT, WRONG = "Paris", "Rome"
CUT, END = StopReason.TOKEN_LIMIT, StopReason.ANSWERED
GROUPS = [
    group("1.0", [RIGHT, WRONG, WRONG, WRONG]),
    group("1.1", [RIGHT] * 4),
    group("1.2", [WRONG, RIGHT, RIGHT, WRONG], kind="two_hop", searches=2),
]


def batch_of(groups: list[Group], settings: Settings, step: int) -> TrainingBatch:
    return compute_advantages(groups, rewards_of(groups, settings, step), settings.grpo)


def test_groups_without_a_difference_are_left_out_and_the_others_get_their_advantages(tmp_path: Path) -> None:
    selection = batch_of(GROUPS, tiny_settings(tmp_path, "grpo.train_per_group=4"), 1)
    expected = [a for g in (GROUPS[0], GROUPS[2]) for a in group_advantages(g.rewards) or []]
    assert [s.advantages[0] for s in selection.sequences] == pytest.approx(expected)
    assert selection.zero_signal_groups == 1
    assert selection.sequences[0].token_ids == [1, 2, 3, 4, 5]
    assert selection.sequences[0].sampled_positions == [2, 4]


def test_the_most_varied_of_a_group_are_kept_and_compared_with_each_other(tmp_path: Path) -> None:
    selection = batch_of(GROUPS[:1], tiny_settings(tmp_path, "grpo.train_per_group=2"), 1)
    kept = group_advantages([GROUPS[0].rewards[0], GROUPS[0].rewards[1]])
    assert kept is not None
    assert sorted(s.advantages[0] for s in selection.sequences) == pytest.approx(sorted(kept))


@given(st.lists(st.sampled_from(["right", "wrong", "cut"]), min_size=2, max_size=8), st.sampled_from([None, 2, 4]))
def test_the_advantages_of_what_is_trained_on_sum_to_zero(members: list[str], keep: int | None) -> None:
    """Else all tokens that a group's episodes share (the form, the plan) would become likelier, or less."""
    made = [
        member(
            answered(RIGHT) if each == "right" else answered(WRONG, stop_reason=CUT if each == "cut" else END), place
        )
        for place, each in enumerate(members)
    ]
    grpo = GrpoConfig(train_per_group=keep, mask_truncated=True)
    groups = [Group("1.0", GROUPS[0].question, made)]
    batch = compute_advantages(groups, [groups[0].rewards], grpo)
    assert sum(s.advantages[0] for s in batch.sequences) == pytest.approx(0, abs=1e-9)
    for each, use in zip(members, batch.group_uses[0], strict=True):
        assert each != "cut" or use.skip_reason


def test_cut_episodes_can_be_masked_but_one_search_too_many_is_punished(tmp_path: Path) -> None:
    for stop_reason, trained in ((CUT, 0), (StopReason.SEARCH_LIMIT, 2)):
        cut = member(answered(WRONG, stop_reason=stop_reason), 1)
        groups = [Group("1.0", GROUPS[0].question, [GROUPS[0].members[0], cut])]
        assert len(batch_of(groups, tiny_settings(tmp_path, "grpo.mask_truncated=false"), 1).sequences) == 2
        # With one of two masked, nobody is left to be compared with.
        assert len(batch_of(groups, tiny_settings(tmp_path, "grpo.mask_truncated=true"), 1).sequences) == trained


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_bad_number_costs_its_episode_and_not_the_step(tmp_path: Path, value: float) -> None:
    broken = answered(RIGHT)
    broken.logprobs[-1] = value
    groups = [Group("1.0", GROUPS[0].question, [*GROUPS[0].members, member(broken, 4)])]
    batch = batch_of(groups, tiny_settings(tmp_path, "grpo.train_per_group=4"), 1)
    assert len(batch.sequences) == 4
    assert "not finite" in (batch.group_uses[0][-1].skip_reason or "")


def test_silent_groups_can_count_with_advantage_zero(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, "grpo.train_per_group=4", "grpo.count_silent_groups=true")
    batch = batch_of(GROUPS, settings, 1)
    assert len(batch.sequences) == 12
    assert [s.advantages[0] for s in batch.sequences[4:8]] == [0.0] * 4
    assert batch.zero_signal_groups == 1


def test_shuffled_rewards_say_nothing_about_the_episodes(tmp_path: Path) -> None:
    """Over many steps the advantage of a right episode is 0 on average; with its own rewards it is well above."""
    arguments = ("grpo.train_per_group=4", "grpo.group_size=4")
    honest = tiny_settings(tmp_path, *arguments)
    shuffled = tiny_settings(tmp_path, *arguments, "ablation.kind=shuffled_rewards")
    groups = [group(f"1.{n}", [RIGHT, WRONG, WRONG, RIGHT]) for n in range(6)]

    def advantage_of_right(settings, step: int) -> float:  # type: ignore[no-untyped-def]
        selection = batch_of(groups, settings, step)
        # Groups may be silent after the shuffle; those that are left list their four members in order.
        return fmean(s.advantages[0] for number, s in enumerate(selection.sequences) if number % 4 in (0, 3))

    assert advantage_of_right(honest, 1) > 0.8
    means = [advantage_of_right(shuffled, step) for step in range(200)]
    assert abs(fmean(means)) < 0.06
    assert len(set(means)) > 20
    assert batch_of(groups, shuffled, 3).sequences == batch_of(groups, shuffled, 3).sequences  # resume deals the same


@given(st.lists(st.lists(st.floats(0, 1), max_size=6), max_size=6), st.integers(0, 99))
def test_dealing_out_keeps_shape_and_rewards(rewards: list[list[float]], seed: int) -> None:
    dealt = shuffle_rewards(rewards, random.Random(seed))
    assert [len(each) for each in dealt] == [len(each) for each in rewards]
    assert sorted(r for each in dealt for r in each) == sorted(r for each in rewards for r in each)


def test_metrics_are_means_over_episodes_and_apart_by_kind() -> None:
    entry = step_metrics(3, 4, GROUPS, silent=1, infra_errors=4, rollout=ROLLOUT, update=None)
    assert entry["episodes"] == 12
    assert entry["em"] == pytest.approx(7 / 12)
    assert entry["reward"] == pytest.approx((7 * 1.0 + 5 * 0.1) / 12)
    assert entry["searches"] == pytest.approx(4 / 3)
    assert entry["sampled_tokens"] == 2
    assert entry["solved_groups"] == 1.0
    assert entry["by_kind"]["two_hop"]["em"] == 0.5
    assert entry["by_kind"]["two_hop"]["searches"] == 2
    assert entry["infra_share"] == pytest.approx(4 / 16)
    assert entry["stop_reasons"] == {"answered": 12}


def test_an_entry_reads_as_one_line() -> None:
    entry = step_metrics(3, 4, GROUPS, silent=1, infra_errors=0, rollout=ROLLOUT, update=None)
    entry["seconds"] = {"rollout": 12.3}
    assert summary_line(entry, 8).startswith(
        "step 3/8: reward 0.625, EM 0.583, 1.33 searches, 2 tokens per episode, version 4"
    )
    control = supervised_metrics(2, 3, [0.5, 0.25], 1e-4)
    control["seconds"] = {"update": 9.0}
    assert summary_line(control, 8) == "step 2/8: 2 supervised steps, loss 0.375 per token, version 3 (update 9 s)"
