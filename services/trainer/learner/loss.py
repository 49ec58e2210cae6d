"""The numbers of GRPO, as pure functions of tensors.

Every per-token tensor is flat: the sampled tokens of all episodes of an update, one after the other; prompt and
retrieved tokens never enter. N is their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

STD_EPSILON = 1e-6

Normalization = Literal["token", "constant", "sequence"]


def group_advantages(rewards: Sequence[float], *, scaled: bool = True) -> list[float] | None:
    """(r - mean) / (std + 1e-6) within one group (ReSearch, eq. 2; std with Bessel's correction, as in verl and TRL).

    Without `scaled` they are r - mean (Dr. GRPO, https://arxiv.org/abs/2503.20783): a group in which only the format
    made a difference (0.1) then counts a tenth of one in which the answer did.
    None if the group carries no signal, because all its rewards are equal.
    """
    values = torch.tensor(rewards, dtype=torch.float64)
    if len(rewards) < 2 or bool((values == values[0]).all()):
        return None
    centred = values - values.mean()
    advantages: list[float] = (centred / (values.std() + STD_EPSILON) if scaled else centred).tolist()
    return advantages


def keep_extremes(rewards: Sequence[float], keep: int) -> list[int]:
    """Indexes of the `keep` most informative episodes of a group, in order: half of them the best, half the worst."""
    order = sorted(range(len(rewards)), key=lambda i: (rewards[i], i))
    if keep >= len(order):
        return list(range(len(order)))
    worst = keep // 2
    return sorted(order[:worst] + order[len(order) - (keep - worst) :])


def token_weights(lengths: Sequence[int], normalization: Normalization, constant_length: int) -> list[float]:
    """Loss weight of one sampled token of each episode; computed once for a whole update.

    Because weights are fixed before the update is cut into micro-batches, the gradient does not depend on the cut.
    `token` divides by all tokens (DAPO), `constant` by episodes x a constant (Dr. GRPO), `sequence` takes the mean of
    each episode's mean (the original GRPO).
    """
    total = sum(lengths)
    if normalization == "token":
        return [1.0 / total] * len(lengths)
    if normalization == "constant":
        return [1.0 / (len(lengths) * constant_length)] * len(lengths)
    return [1.0 / (len(lengths) * length) if length else 0.0 for length in lengths]


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss (a scalar with a gradient) and its parts for the log, all weighted sums."""

    loss: Tensor
    policy: Tensor
    kl: Tensor
    clipped: Tensor


def truncated_importance(old: Tensor, sampler_logprobs: Tensor, cap: float | None) -> Tensor:
    """min(exp(old - sampler), cap) per token: corrects the difference between sampler and learner (TIS)."""
    return torch.ones_like(old) if cap is None else torch.exp(old - sampler_logprobs).clamp(max=cap)


def k3(reference: Tensor, logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token; never negative."""
    difference = reference - logprobs
    return torch.exp(difference) - difference - 1


def grpo_loss(
    logprobs: Tensor,
    old: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    tis_cap: float | None,
    reference: Tensor | None = None,
    kl_coefficient: float = 0.0,
    entropy: Tensor | None = None,
    entropy_coefficient: float = 0.0,
) -> LossTerms:
    """Clipped policy-gradient loss with TIS, k3 KL to a reference and an entropy bonus (protocol notes, section 3).

    Args:
        logprobs: [N] under the current weights, with gradient.
        old: [N] under the learner's weights before the update; `logprobs.detach()` in its first optimizer step.
        sampler_logprobs: [N] as the sampler reported them.
        advantages: [N], of the token's episode.
        weights: [N] from `token_weights`.
        reference: [N] under the frozen reference model; needed if `kl_coefficient` > 0.
        entropy: [N] of the current distribution; needed if `entropy_coefficient` > 0.
    """
    ratio = torch.exp(logprobs - old)
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    policy = -(weights * truncated_importance(old, sampler_logprobs, tis_cap) * surrogate).sum()
    clipped = (weights * (clipped_ratio * advantages < ratio * advantages)).sum().detach()
    loss, kl = policy, torch.zeros_like(policy)
    if kl_coefficient > 0:
        assert reference is not None
        kl = (weights * k3(reference, logprobs)).sum()
        loss = loss + kl_coefficient * kl
    if entropy_coefficient > 0:
        assert entropy is not None
        loss = loss - entropy_coefficient * (weights * entropy).sum()
    return LossTerms(loss, policy.detach(), kl.detach(), clipped)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far the sampler's log-probabilities are from the learner's on the same tokens (nats)."""

    mean: float
    max: float
    kl: float


def mismatch(old: Tensor, sampler_logprobs: Tensor) -> Mismatch:
    """Mean and maximum absolute difference, and the k3 estimate of KL(sampler || learner)."""
    difference = (old - sampler_logprobs).abs()
    return Mismatch(difference.mean().item(), difference.max().item(), k3(old, sampler_logprobs).mean().item())
