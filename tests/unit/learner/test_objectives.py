"""Objectives by name against TRL's code and verl's formulas, and importance corrections against float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from research.config import PRESET_DIR, load_settings
from research.settings.objectives import OBJECTIVES
from research.settings.training import GrpoConfig
from services.trainer.learner.advantages import compute_advantages
from services.trainer.learner.correction import over_sequences, within
from services.trainer.learner.estimators import batch_advantages, leave_one_out_advantages
from services.trainer.learner.learner import Learner
from services.trainer.learner.loss import grpo_loss
from tests.support.loss_references import Batch, our_loss, trl_loss, trl_rloo_loss
from tests.support.scored import group
from tests.support.tiny_model import flat_parameters, random_sequences, tiny_settings, write_tiny_model

REWARDS = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=8)


def loss_and_gradient(compute: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    logprobs = batch.logprobs.clone().requires_grad_()
    loss = compute(logprobs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), gradient


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("objective", "loss_type", "of_trl"),
    [
        ("grpo", "dapo", {"epsilon_high": 0.2}),  # the paper's GRPO means over tokens, as verl does
        ("dr_grpo", "dr_grpo", {"epsilon_high": 0.2}),
        ("dapo", "dapo", {"epsilon_high": 0.28}),
        ("cispo", "cispo", {"epsilon_high": 5.0}),
    ],
)
def test_objectives_equal_trl(objective: str, loss_type: str, of_trl: dict[str, Any], seed: int) -> None:
    batch = Batch(rows=6, length=20, seed=seed)
    mine = loss_and_gradient(lambda lp: our_loss(batch, lp, objective=objective, kl_coefficient=0.05), batch)
    theirs = loss_and_gradient(lambda lp: trl_loss(batch, lp, loss_type, **of_trl), batch)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_gspo_equals_trl(seed: int) -> None:
    """Without importance correction: TRL multiplies the sequence's loss by each token's weight, we its gradient."""
    batch = Batch(rows=6, length=20, seed=seed)
    batch.old = batch.logprobs + 1e-3 * (batch.old - batch.logprobs)  # so that some are clipped, and some are not
    mine = loss_and_gradient(lambda lp: our_loss(batch, lp, objective="gspo", tis_cap=None), batch)
    of_trl = {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4, "beta": 0.0}
    theirs = loss_and_gradient(lambda lp: trl_loss(batch, lp, "grpo", importance=False, **of_trl), batch)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_rloo_has_the_gradient_of_trl() -> None:
    """Its loss is one number a sequence, ours one a token; they have the same gradient but for the constant length."""
    batch = Batch(rows=24, length=20, seed=1)
    _, mine = loss_and_gradient(
        lambda lp: 64 * our_loss(batch, lp, objective="rloo", tis_cap=None, kl_coefficient=0), batch
    )
    _, theirs = loss_and_gradient(lambda lp: trl_rloo_loss(batch, lp), batch)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    clipped = mine[:, 0] == 0
    assert 0 < clipped.sum() < 24


@given(REWARDS)
def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others(rewards: list[float]) -> None:
    found = leave_one_out_advantages(rewards)
    if len(set(rewards)) == 1:
        assert found is None
        return
    total = math.fsum(rewards)
    expected = [r - (total - r) / (len(rewards) - 1) for r in rewards]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def verl_whitened(values: list[float], lengths: list[int]) -> list[float]:
    """`masked_whiten` of verl in float64: each episode's value on each of its tokens, whitened over all tokens."""
    tokens = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
    mean = math.fsum(tokens) / len(tokens)
    variance = math.fsum((token - mean) ** 2 for token in tokens) / len(tokens)
    variance *= len(tokens) / (len(tokens) - 1)
    return [(value - mean) / math.sqrt(variance + 1e-8) for value in values]


EPISODES = st.lists(st.tuples(st.floats(0, 1, allow_subnormal=False), st.integers(1, 40)), min_size=2, max_size=12)


@given(EPISODES)
def test_reinforce_plus_plus_whitens_over_all_tokens_as_verl_does(episodes: list[tuple[float, int]]) -> None:
    rewards, lengths = [r for r, _ in episodes], [n for _, n in episodes]
    assert batch_advantages(rewards, lengths) == pytest.approx(verl_whitened(rewards, lengths), rel=1e-6, abs=1e-6)


@given(EPISODES)
def test_over_a_batch_the_advantages_of_all_tokens_sum_to_zero(episodes: list[tuple[float, int]]) -> None:
    lengths = [n for _, n in episodes]
    found = batch_advantages([r for r, _ in episodes], lengths, scaled=False)
    assert math.fsum(a * n for a, n in zip(found, lengths, strict=True)) == pytest.approx(0, abs=1e-9)


GROUPS = [group("1.0", ["Paris", "Rome", "Rome", "Rome"]), group("1.1", ["Paris"] * 4), group("1.2", ["Rome"] * 4)]


@pytest.mark.parametrize(
    ("objective", "trained"),
    [("grpo", 4), ("rloo", 4), ("reinforce++", 12), ("reinforce++_baseline", 4)],
)
def test_whom_an_objective_compares_decides_what_is_silent(objective: str, trained: int) -> None:
    """Over the batch, a group of right answers has signal; compared within, it has none."""
    batch = compute_advantages(GROUPS, [g.rewards for g in GROUPS], GrpoConfig(objective=objective))
    assert len(batch.sequences) == trained
    assert batch.zero_signal_groups == 2
    assert sum(sum(s.advantages) for s in batch.sequences) == pytest.approx(0, abs=1e-6)


def test_reinforce_plus_plus_with_baseline_is_verls_over_groups() -> None:
    rewards = [g.rewards for g in GROUPS]
    grpo = GrpoConfig(objective="reinforce++_baseline", count_silent_groups=True)
    batch = compute_advantages(GROUPS, rewards, grpo)
    centred = [r - sum(own) / len(own) for own in rewards for r in own]
    expected = verl_whitened(centred, [2] * 12)
    assert [s.advantages[0] for s in batch.sequences] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_batch_of_equal_rewards_is_left_out() -> None:
    batch = compute_advantages(GROUPS[1:2], [GROUPS[1].rewards], GrpoConfig(objective="reinforce++"))
    assert not batch.sequences
    assert "without signal" in (batch.group_uses[0][0].skip_reason or "")


MASKS = [("mis", (0.5, 2.0)), ("sequence_mask", (0.5, 2.0)), ("geometric_mask", (0.99, 1.01)), ("mis", (0.8, 1.1))]


@pytest.mark.parametrize(("correction", "band"), MASKS)
@pytest.mark.parametrize("seed", range(4))
def test_masks_leave_out_what_lies_outside_their_band(correction: str, band: tuple[float, float], seed: int) -> None:
    """verl's rejection, with our denominators: what is left out still counts in them."""
    batch = Batch(rows=8, length=12, seed=seed)
    shrink = {"mis": 1.0, "sequence_mask": 0.5, "geometric_mask": 0.05}[correction]
    batch.sampler_logprobs = batch.old + shrink * (batch.sampler_logprobs - batch.old)
    expected, kept = 0.0, []
    for row in range(8):
        columns = [c for c in range(12) if batch.mask[row, c]]
        apart = [float(batch.old[row, c].double() - batch.sampler_logprobs[row, c].double()) for c in columns]
        for column, own in zip(columns, apart, strict=True):
            level = {"mis": own, "sequence_mask": sum(apart), "geometric_mask": sum(apart) / len(apart)}[correction]
            kept.append(band[0] <= math.exp(level) <= band[1])
            ratio = math.exp(float(batch.logprobs[row, column].double() - batch.old[row, column].double()))
            advantage = float(batch.advantages[row])
            surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            expected -= kept[-1] * min(math.exp(own), 2.0) * surrogate / sum(batch.lengths)
    chosen = GrpoConfig(kl_coefficient=0, importance_correction=correction, importance_band=band)
    terms = grpo_loss(batch.tokens(batch.logprobs.double(), chosen), chosen)
    assert terms.loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert terms.masked.item() == pytest.approx(1 - sum(kept) / len(kept), abs=1e-6)
    assert any(kept)


@given(st.lists(st.lists(st.floats(-3, 3), max_size=6), min_size=1, max_size=6))
def test_over_sequences_takes_each_whole_and_alone(sequences: list[list[float]]) -> None:
    flat = torch.tensor([value for own in sequences for value in own], dtype=torch.float64)
    lengths = [len(own) for own in sequences]
    sums = [math.fsum(own) for own in sequences for _ in own]
    means = [math.fsum(own) / len(own) for own in sequences for _ in own]
    assert over_sequences(flat, lengths, "product").tolist() == pytest.approx(sums, abs=1e-9)
    assert over_sequences(flat, lengths, "sequence").tolist() == pytest.approx(means, abs=1e-9)


def test_a_ratio_far_away_is_outside_every_band() -> None:
    assert within(torch.tensor([-300.0, 0.0, 300.0]), (0.5, 2.0)).tolist() == [0.0, 1.0, 0.0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


WHOLE = ("grpo.num_iterations=2", "grpo.mini_batches=2", "optimizer.learning_rate=3e-2", "optimizer.warmup_steps=0")


@pytest.mark.parametrize("objective", [*OBJECTIVES])
@pytest.mark.parametrize("correction", ["tis", "geometric_mask"])
def test_no_cut_changes_an_update(tiny: Path, tmp_path: Path, objective: str, correction: str) -> None:
    """Also where ratios are of whole sequences, and several optimizer steps move them away from 1."""
    sequences, after = random_sequences(8, seed=3), []
    sampler = Learner(tiny_settings(tmp_path), tiny).logprobs(sequences)
    for number, own in enumerate(sampler):  # some within the band of the mask, some outside
        sequences[number].sampler_logprobs[:] = [logprob + 0.005 * number for logprob in own]
    for budget in (1, 64, 10_000):
        overrides = (f"optimizer.micro_batch_tokens={budget}", f"grpo.importance_correction={correction}")
        learner = Learner(tiny_settings(tmp_path, *WHOLE, f"grpo.objective={objective}", *overrides), tiny)
        before = flat_parameters(learner.model)
        report = learner.grpo_update(sequences)
        assert report is not None
        assert report.clipped_share > 0 or objective == "cispo"  # which clips only what is five times as likely
        assert (report.masked_share > 0) == (correction != "tis")
        after.append(flat_parameters(learner.model) - before)
    # Adam divides by the size of a gradient, so rounding shows where that is small; a step is 3e-2.
    torch.testing.assert_close(after[1], after[0], rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(after[2], after[0], rtol=1e-2, atol=1e-4)


def test_a_ratio_of_sequences_takes_no_pass_in_the_first_step_and_one_in_each_later(tiny: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_settings(tmp_path, "grpo.objective=gspo", "grpo.num_iterations=3"), tiny)
    passes: list[int] = []
    learner.model.register_forward_hook(lambda *_: passes.append(1))
    assert learner.grpo_update(random_sequences(4, seed=1)) is not None
    assert len(passes) == 3 + 2


def test_a_name_sets_what_the_settings_beside_it_do_not() -> None:
    assert GrpoConfig() == GrpoConfig(objective="grpo")
    assert GrpoConfig(objective="gspo").clip_high == 4e-4
    assert GrpoConfig(objective="gspo", clip_high=0.1).clip_high == 0.1
    for name, values in OBJECTIVES.items():
        made = GrpoConfig(objective=name)
        assert {key: getattr(made, key) for key in values} == values
        assert GrpoConfig(**made.model_dump()) == made  # as a run directory and the other ranks read it


def test_a_name_beats_a_preset_and_a_setting_beside_it_beats_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().grpo.scale_advantages is False  # the preset's choice
    assert load_settings(overrides=["grpo.objective=grpo"]).grpo.scale_advantages is True
    assert load_settings(overrides=["grpo.clip_high=0.5", "grpo.objective=dapo"]).grpo.clip_high == 0.5
    monkeypatch.setenv("RESEARCH__GRPO__OBJECTIVE", "dapo")
    assert load_settings().grpo.clip_high == 0.28
    assert load_settings(environment=False).grpo.clip_high == 0.25


def test_a_preset_may_name_its_objective_and_a_name_may_have_quotes(tmp_path: Path) -> None:
    quoted = load_settings(overrides=['grpo.objective="gspo"']).grpo
    assert quoted == load_settings(overrides=["grpo.objective=gspo"]).grpo
    mine = tmp_path / "mine.toml"
    text = (PRESET_DIR / "qwen2.5-7b-musique.toml").read_text()
    mine.write_text(text.replace("[grpo]\n", '[grpo]\nobjective = "gspo"\n'))
    of_preset = load_settings(mine).grpo
    assert (of_preset.objective, of_preset.clip_high) == ("gspo", 0.2), "what a preset sets beside its name holds"
    assert load_settings(mine, ["grpo.objective=dapo"]).grpo.clip_high == 0.28


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"objective": "cispo", "dual_clip": 3}, "dual_clip"),
        ({"objective": "cispo", "ratio_level": "sequence"}, "ratio_level"),
        ({"importance_band": (0.5, 2)}, "importance_correction"),
        ({"importance_correction": "mis", "importance_band": (2, 0.5)}, "importance_band"),
    ],
)
def test_contradictions_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        GrpoConfig(**wrong)
