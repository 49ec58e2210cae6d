"""The GRPO numbers against TRL, a float64 brute force, and themselves under other cuts."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations
from statistics import pvariance
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from research.settings.training import GrpoConfig
from services.trainer.learner.loss import (
    MAX_K3,
    STD_EPSILON,
    TokenValues,
    group_advantages,
    grpo_loss,
    k3,
    keep_most_varied,
    mismatch,
    token_weights,
    truncated_importance,
)

PLAIN = GrpoConfig(kl_coefficient=0)
REWARDS = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=8)


@given(REWARDS)
def test_advantages_are_centred_and_scaled_or_absent(rewards: list[float]) -> None:
    advantages = group_advantages(rewards)
    if len(set(rewards)) == 1:
        assert advantages is None
        return
    assert advantages is not None
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    expected = [(r - mean) / (std + STD_EPSILON) for r in rewards]
    assert advantages == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_unscaled_advantages_are_differences_to_the_mean() -> None:
    assert group_advantages([1.0, 0.1, 0.1], scaled=False) == pytest.approx([0.6, -0.3, -0.3])
    assert group_advantages([0.1, 0.1], scaled=False) is None


def test_a_group_of_one_has_no_signal() -> None:
    assert group_advantages([0.3]) is None


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.integers(2, 10))
def test_the_kept_vary_as_much_as_any_subset(tenths: list[int], keep: int) -> None:
    rewards = [number / 20 for number in tenths]
    kept = keep_most_varied(rewards, keep)
    assert kept == sorted(set(kept))
    assert len(kept) == min(keep, len(rewards))
    subsets = combinations(rewards, len(kept))
    assert pvariance([rewards[i] for i in kept]) == pytest.approx(max(pvariance(subset) for subset in subsets))


def test_of_two_answers_the_kept_are_half_right_and_half_wrong() -> None:
    assert keep_most_varied([0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0], 4) == [0, 2, 5, 6]
    assert keep_most_varied([0.0, 0.0, 1.0, 0.0], 2) == [0, 2]
    assert keep_most_varied([0.5] * 4, 2) == [0, 3]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_token_weights(lengths: list[int]) -> None:
    assert sum(w * n for w, n in zip(token_weights(lengths, "token", 1), lengths, strict=True)) == pytest.approx(1)
    assert sum(w * n for w, n in zip(token_weights(lengths, "sequence", 1), lengths, strict=True)) == pytest.approx(1)
    assert token_weights(lengths, "constant", 100) == [1 / (100 * len(lengths))] * len(lengths)


class Batch:
    """Random rollouts as rows of [prompt, completion], with a tool mask, as TRL takes them and as we do."""

    def __init__(self, rows: int, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def noise(scale: float) -> Tensor:
            return scale * torch.randn(rows, length, generator=generator)

        self.completion_mask = torch.zeros(rows, length)
        for row in range(rows):
            self.completion_mask[row, : int(torch.randint(2, length + 1, (1,), generator=generator))] = 1
        self.tool_mask = (torch.rand(rows, length, generator=generator) > 0.3).float()
        self.tool_mask[:, 0] = 1
        self.mask = self.completion_mask * self.tool_mask
        self.logprobs = -2 + noise(0.7)
        self.old = self.logprobs + noise(0.25)
        self.sampler_logprobs = self.old + noise(0.5)
        self.reference = self.logprobs + noise(0.4)
        self.entropy = noise(1).abs()
        self.advantages = torch.randn(rows, generator=generator)
        self.lengths = [int(n) for n in self.mask.sum(1)]

    def flat(self, values: Tensor) -> Tensor:
        return values[self.mask.bool()]

    def weights(self, normalization: str, constant: int) -> Tensor:
        weights = token_weights(self.lengths, normalization, constant)  # type: ignore[arg-type]
        return self.flat(torch.tensor(weights)[:, None].expand_as(self.mask))


def ours(
    batch: Batch, logprobs: Tensor, normalization: str, *, constant: int = 64, kl: float = 0.05, **extra: Any
) -> Tensor:
    tokens = TokenValues(
        batch.flat(logprobs),
        batch.flat(batch.old),
        batch.flat(batch.sampler_logprobs),
        batch.flat(batch.advantages[:, None].expand_as(batch.mask)),
        batch.weights(normalization, constant).to(logprobs.dtype),
        batch.flat(batch.reference),
        batch.flat(batch.entropy),
    )
    return grpo_loss(tokens, GrpoConfig(clip_low=0.2, clip_high=0.28, kl_coefficient=kl, **extra)).loss


def trl_loss(
    batch: Batch, logprobs: Tensor, loss_type: str, constant: int, entropy: float, delta: float | None
) -> Tensor:
    """TRL's own `_compute_loss`, with the model's forward replaced by the given log-probabilities."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x.reshape(-1), reduce=lambda x, reduction: x, sync_gradients=True
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, batch.entropy, None),
        accelerator=accelerator,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.05,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        max_completion_length=constant,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=entropy > 0,
        use_adaptive_entropy=False,
        entropy_coef=entropy,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    rows, length = batch.mask.shape
    inputs = {
        "prompt_ids": torch.ones(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.ones(rows, length, dtype=torch.long),
        "completion_mask": batch.completion_mask,
        "tool_mask": batch.tool_mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.reference,
        "importance_sampling_ratio": torch.exp(batch.old - batch.sampler_logprobs).clamp(max=2.0),
        "num_items_in_batch": batch.mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("normalization", "loss_type"), [("token", "dapo"), ("constant", "dr_grpo"), ("sequence", "grpo")]
)
@pytest.mark.parametrize("delta", [None, 1.4])
def test_loss_and_gradient_equal_trl(normalization: str, loss_type: str, seed: int, delta: float | None) -> None:
    batch = Batch(rows=6, length=20, seed=seed)
    entropy = 0.01 if normalization == "token" else 0.0  # TRL takes the token mean whatever the policy term takes
    mine, theirs = (batch.logprobs.clone().requires_grad_() for _ in range(2))
    loss = ours(batch, mine, normalization, entropy_coefficient=entropy, dual_clip=delta)
    reference = trl_loss(batch, theirs, loss_type, 64, entropy, delta)
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-6)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("normalization", ["token", "constant", "sequence"])
def test_loss_equals_a_float64_brute_force(normalization: str, seed: int) -> None:
    batch = Batch(rows=4, length=12, seed=100 + seed)
    expected = 0.0
    for row in range(4):
        positions = [c for c in range(12) if batch.mask[row, c]]
        for column in positions:
            lp, old, sampler_logprobs, ref = (
                float(t[row, column]) for t in (batch.logprobs, batch.old, batch.sampler_logprobs, batch.reference)
            )
            advantage, ratio = float(batch.advantages[row]), math.exp(lp - old)
            clipped = min(max(ratio, 0.8), 1.28)
            term = -min(ratio * advantage, clipped * advantage) * min(math.exp(old - sampler_logprobs), 2.0)
            term += 0.05 * (math.exp(ref - lp) - (ref - lp) - 1)
            if normalization == "token":
                expected += term / sum(batch.lengths)
            elif normalization == "constant":
                expected += term / (4 * 64)
            else:
                expected += term / (4 * len(positions))
    assert float(ours(batch, batch.logprobs.double(), normalization)) == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from(["token", "constant", "sequence"]))
@settings(max_examples=40, deadline=None)
def test_any_cut_into_micro_batches_gives_the_same_gradient(seed: int, pieces: int, normalization: str) -> None:
    batch = Batch(rows=6, length=10, seed=seed)
    whole = batch.logprobs.double().requires_grad_()
    ours(batch, whole, normalization).backward()
    pack_micro_batches = batch.logprobs.double().requires_grad_()
    weights = batch.weights(normalization, 64)
    flat = [batch.flat(t) for t in (batch.old, batch.sampler_logprobs, batch.advantages[:, None].expand_as(batch.mask))]
    total = batch.flat(pack_micro_batches)
    for part in torch.arange(len(total)).chunk(pieces):
        old, sampler_logprobs, advantages = (t[part] for t in flat)
        tokens = TokenValues(
            total[part],
            old,
            sampler_logprobs,
            advantages,
            weights[part].double(),
            batch.flat(batch.reference)[part],
        )
        rules = GrpoConfig(clip_low=0.2, clip_high=0.28, kl_coefficient=0.05)
        grpo_loss(tokens, rules).loss.backward(retain_graph=True)
    torch.testing.assert_close(pack_micro_batches.grad, whole.grad)


def test_masked_tokens_have_no_gradient() -> None:
    batch = Batch(rows=3, length=8, seed=1)
    logprobs = batch.logprobs.clone().requires_grad_()
    ours(batch, logprobs, "token").backward()
    assert logprobs.grad is not None
    assert (logprobs.grad[batch.mask == 0] == 0).all()


def test_on_policy_the_ratio_is_one_and_nothing_is_clipped() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0])
    weights = torch.tensor([0.5, 0.5])
    old = logprobs.detach()
    terms = grpo_loss(TokenValues(logprobs, old, old, advantages, weights), PLAIN)
    assert terms.loss.item() == pytest.approx(0.0)
    assert terms.clipped.item() == 0.0
    terms.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.5, 0.5])


def test_truncated_importance_is_capped_and_can_be_off() -> None:
    old, sampler_logprobs = torch.tensor([0.0, 0.0]), torch.tensor([-3.0, 0.5])
    assert truncated_importance(old, sampler_logprobs, 2.0).tolist() == pytest.approx([2.0, math.exp(-0.5)])
    assert truncated_importance(old, sampler_logprobs, None).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=6), st.floats(-3, 3))
def test_k3_is_never_negative_and_zero_only_on_equality(values: list[float], shift: float) -> None:
    logprobs = torch.tensor(values, dtype=torch.float64)
    estimate = k3(logprobs + shift, logprobs)
    assert (estimate >= 0).all()
    assert (estimate <= MAX_K3).all()
    assert k3(logprobs, logprobs).abs().max() == 0


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("apart", [200.0, -200.0])
def test_one_token_far_away_makes_nothing_infinite(advantage: float, apart: float) -> None:
    logprobs = torch.tensor([-1.0, -1.0 + apart], requires_grad=True)
    old = torch.tensor([-1.0, -1.0])
    tokens = TokenValues(logprobs, old, old, torch.full((2,), advantage), torch.full((2,), 0.5), old)
    terms = grpo_loss(tokens, GrpoConfig(kl_coefficient=0.1))
    terms.loss.backward()
    assert logprobs.grad is not None
    assert torch.isfinite(terms.loss)
    assert torch.isfinite(logprobs.grad).all()


def test_dual_clip_bounds_what_one_token_of_a_bad_episode_counts() -> None:
    old = torch.tensor([0.0])
    for ratio, bounded in ((2.0, 2.0), (3.0, 3.0), (50.0, 3.0)):
        tokens = TokenValues(torch.tensor([math.log(ratio)]), old, old, torch.tensor([-1.0]), torch.tensor([1.0]))
        assert grpo_loss(tokens, PLAIN).policy.item() == pytest.approx(ratio, rel=1e-5)
        assert grpo_loss(tokens, GrpoConfig(kl_coefficient=0, dual_clip=3)).policy.item() == pytest.approx(bounded)


def test_mismatch_counts_in_nats() -> None:
    found = mismatch(torch.tensor([-1.0, -1.0]), torch.tensor([-1.1, -0.7]))
    assert found.mean == pytest.approx(0.2)
    assert found.max == pytest.approx(0.3)
    assert found.kl > 0
