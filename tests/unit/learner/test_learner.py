"""The learner on a tiny real model: log-probabilities, micro-batches, freezing, guards, checkpoints."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from research.errors import TrainingError
from services.trainer.learner.learner import Learner
from services.trainer.model.batching import TrainingSequence
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
        TrainingSequence(s.token_ids, s.sampled_positions, lp, s.advantages)
        for s, lp in zip(sequences, learner.logprobs(sequences), strict=True)
    ]
    report = learner.grpo_update(on_policy)
    assert report is not None
    assert report.mismatch_max == pytest.approx(0.0, abs=1e-5)
    gain = sum(
        s.advantages[0] * (sum(new) - sum(s.sampler_logprobs))
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
    bad = TrainingSequence(
        good.token_ids, good.sampled_positions, good.sampler_logprobs, [advantage] * good.sampled_tokens
    )
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
    write_checkpoint(learner.write_weights, tiny, tmp_path / "version-1", "Think first.")
    base, new = load_file(tiny / "model.safetensors"), load_file(tmp_path / "version-1" / "model.safetensors")
    assert base.keys() == new.keys()
    assert all(new[name].dtype == torch.bfloat16 for name in new)
    assert any(not torch.equal(base[name], new[name]) for name in new)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "version-1", dtype=torch.float32)
    rounded = flat_parameters(learner.model).to(torch.bfloat16).float()
    assert torch.equal(flat_parameters(model), rounded)
    assert json.loads((tmp_path / "version-1" / "config.json").read_text())["model_type"] == "llama"


def test_gathered_weights_are_those_that_would_be_written_and_stay_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = write_tiny_model(tmp_path / "tiny")
    # In the learner's own dtype, in which nothing has to be converted.
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).save_pretrained(tiny)
    learner = Learner(tiny_settings(tmp_path), tiny)
    (tmp_path / "out").mkdir()
    learner.write_weights(tiny, tmp_path / "out")
    gathered = learner.gather_weights(tiny)
    assert learner.grpo_update(random_sequences(4, seed=8)) is not None
    written, now = load_file(tmp_path / "out" / "model.safetensors"), learner.gather_weights(tiny)
    assert gathered.keys() == written.keys() == now.keys()
    assert all(torch.equal(gathered[name], written[name]) for name in written)
    assert not all(torch.equal(gathered[name], now[name]) for name in now)


@pytest.mark.parametrize("overrides", [("grpo.mini_batches=3",), ("grpo.mini_batches=2", "grpo.num_iterations=2")])
def test_mini_batches_are_optimizer_steps_on_parts_with_the_first_policy_as_old(
    tiny: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    sequences = random_sequences(6, seed=9)
    learner = Learner(tiny_settings(tmp_path, *overrides, "optimizer.learning_rate=3e-2"), tiny)
    before = learner.logprobs(sequences)
    taken: list[int] = []
    learner.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    report = learner.grpo_update(sequences)
    assert report is not None
    assert len(taken) == {1: 3, 2: 4}[len(overrides)]
    assert report.tokens == sum(s.sampled_tokens for s in sequences)
    # What "old" was is what the weights were at the start, for every part.
    apart = [
        abs(o - b)
        for s, own in zip(sequences, before, strict=True)
        for o, b in zip(own, s.sampler_logprobs, strict=True)
    ]
    assert report.mismatch_mean == pytest.approx(sum(apart) / len(apart), rel=1e-4)
    assert report.clipped_share > 0


def test_episodes_without_advantage_count_in_the_denominator_and_cost_nothing(tiny: Path, tmp_path: Path) -> None:
    """Half of the tokens carry nothing, so that a token of the others counts half."""
    sequence = random_sequences(1, seed=1)[0]
    silent = replace(sequence, advantages=[0.0] * sequence.sampled_tokens)
    norms, tokens = [], []
    for batch in ([sequence], [sequence, silent]):
        learner = Learner(tiny_settings(tmp_path, "grpo.kl_coefficient=0", "optimizer.max_grad_norm=1e9"), tiny)
        report = learner.grpo_update(batch)
        assert report is not None
        norms.append(report.grad_norm)
        tokens.append(report.tokens)
    assert norms[1] == pytest.approx(norms[0] / 2, rel=1e-4)
    assert tokens[0] == tokens[1]
    assert learner.grpo_update([silent]) is None


def gradient(learner: Learner, sequences: list[TrainingSequence]) -> torch.Tensor:
    """The gradient, before it is clipped."""
    caught: list[torch.Tensor] = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: caught.append(
            torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None])
        )
    )
    assert learner.grpo_update(sequences) is not None
    return caught[0]


def test_float16_loses_no_gradient_of_a_large_update(tiny: Path, tmp_path: Path) -> None:
    """Weights as of the paper's half a million tokens per update: unscaled, 39 % of the gradient was exactly zero."""
    large = ("grpo.loss_aggregation=constant", "grpo.constant_length=500000", "optimizer.max_grad_norm=1e9")
    exact, half = (
        gradient(Learner(tiny_settings(tmp_path, f"model.dtype={dtype}", *large), tiny), random_sequences(6, seed=4))
        for dtype in ("float32", "float16")
    )
    assert torch.nn.functional.cosine_similarity(exact, half, dim=0) > 0.999
    assert half.norm().item() == pytest.approx(exact.norm().item(), rel=1e-2)
    assert ((half == 0) & (exact != 0)).float().mean() < 0.01


def test_a_gradient_that_overflows_float16_is_computed_again_with_a_smaller_scale(tiny: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_settings(tmp_path, "model.dtype=float16"), tiny)
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**40})
    report = learner.grpo_update(random_sequences(4, seed=4))
    assert report is not None
    assert learner.scaler.get_scale() < 2.0**40
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.save(learner, RunState(1, 1, 1, {}, {}))
    resumed = Learner(tiny_settings(tmp_path, "model.dtype=float16"), tiny)
    store.restore_latest(resumed)
    assert resumed.scaler.get_scale() == learner.scaler.get_scale()


def test_an_update_that_is_broken_off_ends_before_its_next_micro_batch(tiny: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_settings(tmp_path, "optimizer.micro_batch_tokens=32"), tiny)
    before = flat_parameters(learner.model).clone()
    learner.break_off()
    for update in (
        lambda: learner.grpo_update(random_sequences(4, seed=1)),
        lambda: learner.supervised_update(random_sequences(4, seed=1), 1e-4, "sft"),
    ):
        with pytest.raises(TrainingError, match="aborted"):
            update()
    assert torch.equal(flat_parameters(learner.model), before)
