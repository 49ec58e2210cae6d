"""The GRPO numbers against TRL, a float64 brute force, and themselves under other cuts."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import pvariance
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from research.settings.training import GrpoConfig
from services.trainer.learner.correction import truncated_importance
from services.trainer.learner.estimators import STD_EPSILON, group_advantages, keep_most_varied
from services.trainer.learner.loss import MAX_K3, TokenValues, grpo_loss, k3, mismatch, token_weights
from tests.support.loss_references import Batch, our_loss, trl_loss

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


def ours(batch: Batch, logprobs: Tensor, normalization: str, **extra: Any) -> Tensor:
    return our_loss(batch, logprobs, loss_aggregation=normalization, clip_high=0.28, kl_coefficient=0.05, **extra)


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
    reference = trl_loss(batch, theirs, loss_type, entropy=entropy, delta=delta)
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
    weights = batch.weights(normalization)  # type: ignore[arg-type]
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
    assert (estimate >= -1e-30).all()  # that much by rounding
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
