"""The likelihood of right episodes before and after an update, against plain log-probabilities."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.settings.training import GrpoConfig
from services.trainer.learner.advantages import compute_advantages
from services.trainer.learner.learner import Learner
from services.trainer.learner.likelihood import RightLikelihood, with_few_right
from services.trainer.model.batching import TrainingSequence
from tests.support.scored import group
from tests.support.tiny_model import random_sequences, tiny_settings, write_tiny_model

ALL = ["alarms.likelihood_share=1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def sequences(seed: int) -> list[TrainingSequence]:
    """Seven, of which those that are reinforced are right."""
    return [replace(each, right=each.advantages[0] > 0) for each in random_sequences(7, seed)]


def updated(learner: Learner, batch: list[TrainingSequence]) -> RightLikelihood | None:
    report = learner.grpo_update(batch)
    assert report is not None
    return report.right


def mean_of_right(learner: Learner, batch: list[TrainingSequence]) -> float:
    found = zip(batch, learner.logprobs(batch), strict=True)
    return fmean(logprob for sequence, own in found if sequence.right for logprob in own)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], id="one optimizer step"),
        pytest.param(["optimizer.micro_batch_tokens=1"], id="a micro-batch each"),
        pytest.param(["grpo.mini_batches=3", "grpo.num_iterations=2"], id="several optimizer steps"),
        pytest.param(["grpo.importance_correction=geometric_mask", "grpo.importance_band=[0,9]"], id="known before"),
    ],
)
def test_before_and_after_are_those_of_the_weights_before_and_after(
    tiny: Path, tmp_path: Path, overrides: list[str]
) -> None:
    learner = Learner(tiny_settings(tmp_path, *ALL, "optimizer.warmup_steps=0", *overrides), tiny)
    batch = sequences(1)
    before = mean_of_right(learner, batch)
    right = updated(learner, batch)
    assert right is not None
    assert right.before == pytest.approx(before, abs=1e-5)
    assert right.after == pytest.approx(mean_of_right(learner, batch), abs=1e-5)
    assert right.after != pytest.approx(before, abs=1e-3)
    assert right.episodes == sum(sequence.right for sequence in batch)


def test_wrong_episodes_can_pull_a_right_one_down_that_is_reinforced(tiny: Path, tmp_path: Path) -> None:
    """Lazy likelihood displacement: two wrong ones begin as the right one does, and weigh more together."""
    learner = Learner(tiny_settings(tmp_path, "optimizer.warmup_steps=0", "optimizer.learning_rate=1e-2"), tiny)
    tokens = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    right = TrainingSequence(tokens, list(range(3, 10)), [-4.0] * 7, [0.5] * 7, right=True)
    wrong = TrainingSequence([*tokens[:-1], 20], list(range(3, 10)), [-4.0] * 7, [-2.0] * 7)
    found = updated(learner, [right, wrong, replace(wrong, token_ids=[*tokens[:-1], 21])])
    assert found is not None
    assert found.after < found.before


def test_measuring_changes_no_weight_and_can_be_left_out(tiny: Path, tmp_path: Path) -> None:
    watching, not_watching = (
        Learner(tiny_settings(tmp_path, f"alarms.likelihood_share={share}"), tiny) for share in (1, 0)
    )
    batch = sequences(2)
    assert updated(watching, batch) is not None
    assert updated(not_watching, batch) is None
    assert watching.logprobs(batch) == not_watching.logprobs(batch)


def test_without_a_right_episode_nothing_is_measured(tiny: Path, tmp_path: Path) -> None:
    report = Learner(tiny_settings(tmp_path), tiny).grpo_update(random_sequences(4, seed=3))
    assert report is not None
    assert report.right is None
    assert not [name for name in report.as_entry() if name.startswith("right")]


def test_the_entry_of_an_update_has_it_flat(tiny: Path, tmp_path: Path) -> None:
    batch = sequences(4)
    report = Learner(tiny_settings(tmp_path, *ALL), tiny).grpo_update(batch)
    assert report is not None
    assert report.right is not None
    entry = report.as_entry()
    assert (entry["right_before"], entry["right_after"]) == (report.right.before, report.right.after)
    assert entry["right_episodes"] == sum(sequence.right for sequence in batch)


@given(st.lists(st.booleans(), max_size=40), st.sampled_from([0.0, 0.01, 0.1, 0.25, 1.0]))
def test_at_most_a_share_stays_marked_and_they_are_spread(marks: list[bool], share: float) -> None:
    (plain,) = random_sequences(1, seed=5)
    batch = with_few_right([replace(plain, right=mark) for mark in marks], share)
    kept = [index for index, sequence in enumerate(batch) if sequence.right]
    assert len(kept) == min(math.ceil(share * len(marks)), sum(marks))
    assert all(marks[index] for index in kept)
    # Between two that are kept there are about as many others as between any two.
    ranks = [sum(marks[:index]) for index in kept]
    gaps = [later - earlier for earlier, later in pairwise(ranks)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_right_is_what_is_an_exact_match_and_reinforced() -> None:
    """Where all are right nothing is reinforced, and what is wrong never counts."""
    groups = [group("1.0", ["Paris", "Lyon", "Paris"]), group("1.1", ["Paris", "Paris"]), group("1.2", ["Lyon", "x"])]
    batch = compute_advantages(groups, [each.rewards for each in groups], GrpoConfig(count_silent_groups=True))
    assert [sequence.right for sequence in batch.sequences] == [True, False, True, *[False] * 4]
    # As in an ablation: the right ones are punished.
    shuffled = compute_advantages(groups[:1], [[0.0, 1.0, 0.0]], GrpoConfig())
    assert [sequence.right for sequence in shuffled.sequences] == [False] * 3
