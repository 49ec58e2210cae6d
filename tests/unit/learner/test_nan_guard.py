"""A number that is not finite never reaches the weights or the optimizer, wherever it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from services.trainer.learner.learner import Learner
from services.trainer.model.batching import TrainingSequence
from tests.support.tiny_model import random_sequences, tiny_settings, write_tiny_model

NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def bits(learner: Learner) -> dict[str, bytes]:
    """Weights and optimizer state as bytes, because NaN is equal to nothing."""
    tensors = {f"model.{name}": value for name, value in learner.model.state_dict().items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}


def with_behaviour(sequence: TrainingSequence, value: float) -> TrainingSequence:
    return replace(sequence, sampler_logprobs=[*sequence.sampler_logprobs[:-1], value])


def with_advantage(sequence: TrainingSequence, value: float) -> TrainingSequence:
    return replace(sequence, advantages=[*sequence.advantages[:-1], value])


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("spoil", [with_behaviour, with_advantage])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_bad_sequence_among_good_ones_changes_nothing(
    tiny: Path, tmp_path: Path, spoil: Callable[[TrainingSequence, float], TrainingSequence], value: float, steps: int
) -> None:
    overrides = ("optimizer.micro_batch_tokens=64", f"grpo.num_iterations={steps}", "grpo.kl_coefficient=0.01")
    learner = Learner(tiny_settings(tmp_path, *overrides), tiny)
    good = random_sequences(4, seed=1)
    assert learner.grpo_update(good) is not None  # so that the optimizer has a state
    before = bits(learner)
    assert learner.grpo_update([*good[:2], spoil(good[2], value), good[3]]) is None
    assert bits(learner) == before
    assert learner.updates == 1
    assert all(p.grad is None for p in learner.model.parameters())
    report = learner.grpo_update(good)
    assert report is not None
    assert all(math.isfinite(cast(float, number)) for number in report.as_entry().values())
    assert bits(learner) != before


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.1.mlp.down_proj.weight", "norm.weight"])
def test_a_bad_weight_spreads_no_further(tiny: Path, tmp_path: Path, name: str, value: float) -> None:
    learner = Learner(tiny_settings(tmp_path), tiny)
    good = random_sequences(3, seed=2)
    assert learner.grpo_update(good) is not None
    weight: Any = learner.model.base_model.get_parameter(name).data.view(-1)
    # An embedding is bad only for a token that occurs.
    place = good[0].token_ids[0] * 32 if name.startswith("embed") else 5
    kept = weight[place].clone()
    weight[place] = value
    before = bits(learner)
    assert learner.grpo_update(good) is None
    assert bits(learner) == before
    weight[place] = kept
    assert learner.grpo_update(good) is not None
    assert all(torch.isfinite(p).all() for p in learner.model.parameters())


def test_a_later_optimizer_step_that_fails_leaves_what_the_earlier_ones_did(tiny: Path, tmp_path: Path) -> None:
    """The first step throws the weights so far that the second is not finite; what is reported is what was done."""
    after, reports = [], []
    for steps in (1, 3):
        overrides = (f"grpo.num_iterations={steps}", "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0")
        learner = Learner(tiny_settings(tmp_path, *overrides, "optimizer.weight_decay=0"), tiny)
        reports.append(learner.grpo_update(random_sequences(3, seed=3)))
        after.append(bits(learner))
        assert learner.updates == 1
    assert reports[0] is not None
    assert reports[1] == reports[0]
    assert after[1] == after[0]
