"""The numbers of GRPO, as pure functions of tensors.

Every per-token tensor is flat: the sampled tokens of all episodes of an update, one after the other; prompt and
retrieved tokens never enter. N is their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

STD_EPSILON = 1e-6
# Log-ratios beyond these are clamped before `exp`, so that no single token makes a sum infinite. As verl does
# (core_algos.py: 20 for the importance ratio and within k3, 10 for k3 itself).
MAX_LOG_RATIO, MAX_K3 = 20.0, 10.0

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


def keep_most_varied(rewards: Sequence[float], keep: int) -> list[int]:
    """Indexes, in order, of the `keep` episodes of a group whose rewards vary most (PODS, https://arxiv.org/abs/2504.13818).

    They are always some of the best and some of the worst (theorem 1 there); of equally varied subsets the most even
    cut is taken, and of equal rewards the earlier ones among the worst and the later ones among the best.
    """
    order = sorted(range(len(rewards)), key=lambda i: (rewards[i], i))
    if keep >= len(order):
        return list(range(len(order)))

    def subset(worst: int) -> list[int]:
        return order[:worst] + order[len(order) - (keep - worst) :]

    def merit(worst: int) -> tuple[float, int]:
        chosen = [rewards[i] for i in subset(worst)]
        mean = sum(chosen) / keep
        # Rounded: two subsets with the same rewards must tie, whatever the order of the sum.
        return round(sum((reward - mean) ** 2 for reward in chosen), 12), -abs(2 * worst - keep)

    return sorted(subset(max(range(keep + 1), key=merit)))


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


def importance_ratio(logprobs: Tensor, old: Tensor) -> Tensor:
    """exp(logprobs - old) per token, between exp(-20) and exp(20)."""
    return torch.exp((logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def k3(reference: Tensor, logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token; from 0 to 10 nats, where it is cut."""
    difference = (reference - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (torch.exp(difference) - difference - 1).clamp(max=MAX_K3)


class LossSettings(Protocol):
    """The settings of the loss (`GrpoConfig` has them)."""

    @property
    def clip_low(self) -> float: ...
    @property
    def clip_high(self) -> float: ...
    @property
    def dual_clip(self) -> float | None: ...
    @property
    def tis_cap(self) -> float | None: ...
    @property
    def kl_coefficient(self) -> float: ...
    @property
    def entropy_coefficient(self) -> float: ...


@dataclass(frozen=True, slots=True)
class TokenValues:
    """What the loss needs of N sampled tokens.

    Attributes:
        logprobs: [N] under the current weights, with gradient.
        old: [N] under the learner's weights before the update; `logprobs.detach()` in its first optimizer step.
        sampler_logprobs: [N] as the sampler reported them.
        advantages: [N], of the token's episode.
        weights: [N] from `token_weights`.
        reference: [N] under the frozen reference model; needed if `kl_coefficient` > 0.
        entropy: [N] of the current distribution; needed if `entropy_coefficient` > 0.
    """

    logprobs: Tensor
    old: Tensor
    sampler_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    reference: Tensor | None = None
    entropy: Tensor | None = None


def grpo_loss(tokens: TokenValues, settings: LossSettings) -> LossTerms:
    """Clipped policy-gradient loss with TIS, k3 KL to a reference and an entropy bonus (protocol notes, section 3).

    `dual_clip` limits what the ratio counts for a token of a bad episode (https://arxiv.org/abs/1912.09729, `delta` in
    TRL, `clip_ratio_c` in verl); plain clipping leaves it unbounded there.
    """
    advantages, weights = tokens.advantages, tokens.weights
    ratio = importance_ratio(tokens.logprobs, tokens.old)
    clipped_ratio = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    if settings.dual_clip is not None:
        ratio = ratio.clamp(max=settings.dual_clip)
    surrogate = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    correction = truncated_importance(tokens.old, tokens.sampler_logprobs, settings.tis_cap)
    policy = -(weights * correction * surrogate).sum()
    clipped = (weights * (clipped_ratio * advantages < ratio * advantages)).sum().detach()
    loss, kl = policy, torch.zeros_like(policy)
    if settings.kl_coefficient > 0:
        assert tokens.reference is not None
        kl = (weights * k3(tokens.reference, tokens.logprobs)).sum()
        loss = loss + settings.kl_coefficient * kl
    if settings.entropy_coefficient > 0:
        assert tokens.entropy is not None
        loss = loss - settings.entropy_coefficient * (weights * tokens.entropy).sum()
    return LossTerms(loss, policy.detach(), kl.detach(), clipped)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far the sampler's log-probabilities are from the learner's on the same tokens (nats)."""

    mean: float
    max: float
    kl: float


@dataclass(slots=True)
class MismatchSums:
    """The sums that a `Mismatch` is made of, over tokens as they come."""

    difference: float = 0.0
    k3: float = 0.0
    tokens: float = 0.0
    max: float = 0.0

    def add(self, old: Tensor, sampler_logprobs: Tensor) -> None:
        """Add tokens: [N] log-probabilities by learner and sampler."""
        if not len(old):
            return
        difference = (old - sampler_logprobs).abs().double()
        self.difference += difference.sum().item()
        self.k3 += k3(old, sampler_logprobs).double().sum().item()
        self.tokens += len(old)
        self.max = max(self.max, difference.max().item())

    def over(self, total: Callable[[list[float]], list[float]], largest: Callable[[float], float]) -> Mismatch:
        """Mean and maximum absolute difference, and the k3 estimate of KL(sampler || learner), over all ranks."""
        difference, estimate, tokens = total([self.difference, self.k3, self.tokens])
        return Mismatch(difference / tokens, largest(self.max), estimate / tokens)


def mismatch(old: Tensor, sampler_logprobs: Tensor) -> Mismatch:
    """The mismatch on [N] tokens, of one process."""
    sums = MismatchSums()
    sums.add(old, sampler_logprobs)
    return sums.over(list, float)
