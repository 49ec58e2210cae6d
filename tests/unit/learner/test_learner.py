"""The learner on a tiny real model: log-probabilities, micro-batches, freezing, guards, checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from research.errors import TrainingError
from services.trainer.learner.batching import TrainingSequence, pack_micro_batches
from services.trainer.learner.learner import Learner
from services.trainer.run_dir.checkpoints import CheckpointStore, RunState
from services.trainer.weights.publisher import write_checkpoint
from tests.support.tiny_model import flat_parameters, random_sequences, tiny_settings, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_logprobs_equal_a_plain_forward(tiny: Path, tmp_path: Path) -> None:
    sequences = random_sequences(5, seed=1)
    learner = Learner(tiny_settings(tmp_path), tiny)
    found = learner.logprobs(sequences)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for sequence, logprobs in zip(sequences, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([sequence.token_ids])).logits[0]
        table = torch.log_softmax(logits.double(), dim=-1)
        expected = [table[p - 1, sequence.token_ids[p]].item() for p in sequence.sampled_positions]
        assert logprobs == pytest.approx(expected, abs=1e-5)


def test_temperature_scales_the_logits(tiny: Path, tmp_path: Path) -> None:
    sequences = random_sequences(1, seed=2)
    cold = Learner(tiny_settings(tmp_path, "episode.temperature=0.5"), tiny).logprobs(sequences)[0]
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([sequences[0].token_ids])).logits[0] / 0.5, dim=-1)
    expected = [table[p - 1, sequences[0].token_ids[p]].item() for p in sequences[0].sampled_positions]
    assert cold == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("normalization", ["token", "constant", "sequence"])
def test_the_size_of_micro_batches_does_not_change_the_update(tiny: Path, tmp_path: Path, normalization: str) -> None:
    sequences = random_sequences(7, seed=3)
    after = []
    for budget in (1, 64, 10_000):
        settings = tiny_settings(
            tmp_path, f"optimizer.micro_batch_tokens={budget}", f"grpo.loss_aggregation={normalization}"
        )
        learner = Learner(settings, tiny)
        before = flat_parameters(learner.model)
        assert learner.grpo_update(sequences) is not None
        after.append(flat_parameters(learner.model) - before)
    assert after[0].abs().max() > 0
    torch.testing.assert_close(after[1], after[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(after[2], after[0], rtol=1e-3, atol=1e-6)


def test_an_update_makes_good_episodes_likelier_and_bad_ones_less(tiny: Path, tmp_path: Path) -> None:
    sequences = random_sequences(6, seed=4)
    learner = Learner(tiny_settings(tmp_path, "optimizer.warmup_steps=0"), tiny)
    on_policy = [
        TrainingSequence(s.token_ids, s.sampled_positions, lp, s.advantage)
        for s, lp in zip(sequences, learner.logprobs(sequences), strict=True)
    ]
    report = learner.grpo_update(on_policy)
    assert report is not None
    assert report.mismatch_max == pytest.approx(0.0, abs=1e-5)
    gain = sum(
        s.advantage * (sum(new) - sum(s.sampler_logprobs))
        for s, new in zip(on_policy, learner.logprobs(on_policy), strict=True)
    )
    assert gain > 0


def test_kl_holds_the_policy_near_the_reference(tiny: Path, tmp_path: Path) -> None:
    drift = []
    for coefficient in (0.0, 10.0):
        settings = tiny_settings(tmp_path, f"grpo.kl_coefficient={coefficient}", "optimizer.warmup_steps=0")
        learner = Learner(settings, tiny)
        before = flat_parameters(learner.model)
        for step in range(5):
            assert learner.grpo_update(random_sequences(4, seed=step)) is not None
        drift.append((flat_parameters(learner.model) - before).norm().item())
    assert drift[1] < drift[0]


def test_frozen_layers_stay_as_they_are(tiny: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_settings(tmp_path, "optimizer.frozen_layers=1"), tiny)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    assert learner.grpo_update(random_sequences(4, seed=5)) is not None
    changed = {name for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("layers.0." in name or "embed_tokens" in name or "lm_head" in name for name in changed)


def test_freezing_everything_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="leaves nothing to train"):
        Learner(tiny_settings(tmp_path, "optimizer.frozen_layers=2"), tiny)


@pytest.mark.parametrize("advantage", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(tiny: Path, tmp_path: Path, advantage: float) -> None:
    learner = Learner(tiny_settings(tmp_path), tiny)
    before = flat_parameters(learner.model)
    (good,) = random_sequences(1, seed=6)
    bad = TrainingSequence(good.token_ids, good.sampled_positions, good.sampler_logprobs, advantage)
    assert learner.grpo_update([bad]) is None
    assert torch.equal(flat_parameters(learner.model), before)
    assert learner.updates == 0
    assert learner.grpo_update([good]) is not None


def test_several_optimizer_steps_keep_the_first_policy_as_old(tiny: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, "grpo.num_iterations=3", "optimizer.learning_rate=3e-2")
    report = Learner(settings, tiny).grpo_update(random_sequences(6, seed=7))
    assert report is not None
    assert report.clipped_share > 0  # only possible if the ratio moved away from one


def test_a_resumed_learner_does_exactly_what_an_unbroken_one_does(tiny: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, "grpo.kl_coefficient=0.01", "optimizer.warmup_steps=6")
    unbroken = Learner(settings, tiny)
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    for step in range(1, 7):
        assert unbroken.grpo_update(random_sequences(4, seed=step)) is not None
        if step <= 3:
            store.save(unbroken, RunState(step, step, unbroken.updates, {"one_hop": step}, {"update": 1.0}))
    assert [path.name for path in store.all()] == ["step-000002", "step-000003"]
    resumed = Learner(settings, tiny)
    state = store.restore_latest(resumed)
    assert state == RunState(3, 3, 3, {"one_hop": 3}, {"update": 1.0})
    for step in range(4, 7):
        assert resumed.grpo_update(random_sequences(4, seed=step)) is not None
    assert torch.equal(flat_parameters(resumed.model), flat_parameters(unbroken.model))


def test_a_half_written_checkpoint_is_never_taken(tiny: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_settings(tmp_path), tiny)
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.save(learner, RunState(1, 1, 1, {}, {}))
    (tmp_path / "checkpoints" / "step-000002.partial").mkdir()
    state = store.restore_latest(learner)
    assert state is not None
    assert state.step == 1


def test_a_published_checkpoint_is_an_ordinary_one(tiny: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_settings(tmp_path), tiny)
    assert learner.grpo_update(random_sequences(4, seed=8)) is not None
    write_checkpoint(learner.model.state_dict(), tiny, tmp_path / "version-1", "Think first.")
    base, new = load_file(tiny / "model.safetensors"), load_file(tmp_path / "version-1" / "model.safetensors")
    assert base.keys() == new.keys()
    assert all(new[name].dtype == torch.bfloat16 for name in new)
    assert any(not torch.equal(base[name], new[name]) for name in new)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "version-1", dtype=torch.float32)
    rounded = flat_parameters(learner.model).to(torch.bfloat16).float()
    assert torch.equal(flat_parameters(model), rounded)
    assert json.loads((tmp_path / "version-1" / "config.json").read_text())["model_type"] == "llama"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 100))
def test_micro_batches_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    sequences = [TrainingSequence([0] * n, [], []) for n in lengths]
    groups = pack_micro_batches(sequences, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


def test_an_update_that_is_broken_off_ends_before_its_next_micro_batch(tiny: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_settings(tmp_path, "optimizer.micro_batch_tokens=32"), tiny)
    before = flat_parameters(learner.model).clone()
    learner.break_off()
    for update in (
        lambda: learner.grpo_update(random_sequences(4, seed=1)),
        lambda: learner.supervised_update(random_sequences(4, seed=1), learner.optimizer),
    ):
        with pytest.raises(TrainingError, match="aborted"):
            update()
    assert torch.equal(flat_parameters(learner.model), before)
