"""The numbers of an update, as pure functions of tensors.

Every per-token tensor is flat: the sampled tokens of all episodes of an update, one after the other; prompt and
retrieved tokens never enter. N is their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from research.settings.objectives import ClipForm, ImportanceCorrection
from services.trainer.learner.correction import MAX_LOG_RATIO, truncated_importance, within

# Log-ratios beyond MAX_LOG_RATIO are clamped before `exp`, so that no single token makes a sum infinite. As verl does
# (core_algos.py: 20 for the importance ratio and within k3, 10 for k3 itself).
MAX_K3 = 10.0

Normalization = Literal["token", "constant", "sequence"]


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
    """The loss (a scalar with a gradient) and its parts for the log, all weighted sums.

    `clipped` and `masked` are the weights of the tokens that the clip or the importance mask acts on.
    """

    loss: Tensor
    policy: Tensor
    kl: Tensor
    clipped: Tensor
    masked: Tensor


def importance_ratio(logprobs: Tensor, old: Tensor, of_sequence: Tensor | None = None) -> Tensor:
    """[N] the ratio of new to old policy, between exp(-20) and exp(20).

    It is exp(logprobs - old) of each token, or exp(of_sequence) of its sequence. That one has the gradient of the
    token's own log-probability (GSPO-token, https://arxiv.org/abs/2507.18071, eq. 14): over the tokens of a sequence,
    weighed alike, the gradients add up to that of a ratio of the whole sequence, but no pass over it is needed.
    """
    log_ratio = logprobs - old if of_sequence is None else of_sequence + (logprobs - logprobs.detach())
    return torch.exp(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def k3(reference: Tensor, logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token; from 0 to 10 nats, where it is cut."""
    difference = (reference - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (torch.expm1(difference) - difference).clamp(max=MAX_K3)


class LossSettings(Protocol):
    """The settings of the loss (`GrpoConfig` has them)."""

    @property
    def clip_form(self) -> ClipForm: ...
    @property
    def clip_low(self) -> float: ...
    @property
    def clip_high(self) -> float: ...
    @property
    def dual_clip(self) -> float | None: ...
    @property
    def importance_correction(self) -> ImportanceCorrection: ...
    @property
    def kept_band(self) -> tuple[float, float] | None: ...
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
        advantages: [N], of each token.
        weights: [N] from `token_weights`.
        log_ratio: [N] of new to old policy over the token's sequence, without gradient; None: each token has its own,
            or the weights are still the old ones.
        mismatch: [N] log-ratio of learner to sampler over the token's sequence; needed by masks of sequences.
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
    log_ratio: Tensor | None = None
    mismatch: Tensor | None = None


def clipped_surrogate(tokens: TokenValues, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """[N] what the policy term sums up (with gradient), and where the clip acts (bool).

    `surrogate` is PPO's: min(ratio x A, clip(ratio) x A), without gradient where clipped. `dual_clip` limits what the
    ratio counts for a token of a bad episode there (https://arxiv.org/abs/1912.09729, `delta` in TRL, `clip_ratio_c`
    in verl); plain clipping leaves it unbounded. `weight` is CISPO's (https://arxiv.org/abs/2506.13585):
    clip(ratio) x A x logprobs, of which only logprobs have a gradient.
    """
    advantages = tokens.advantages
    ratio = importance_ratio(tokens.logprobs, tokens.old, tokens.log_ratio)
    clipped_ratio = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    if settings.clip_form == "weight":
        return clipped_ratio.detach() * advantages * tokens.logprobs, clipped_ratio != ratio
    if settings.dual_clip is not None:
        ratio = ratio.clamp(max=settings.dual_clip)
    return torch.minimum(
        ratio * advantages, clipped_ratio * advantages
    ), clipped_ratio * advantages < ratio * advantages


def importance_mask(tokens: TokenValues, settings: LossSettings) -> Tensor | None:
    """[N] 1 for what `importance_correction` keeps, else 0; None if it leaves nothing out."""
    if settings.kept_band is None:
        return None
    if settings.importance_correction == "mis":
        return within(tokens.old - tokens.sampler_logprobs, settings.kept_band)
    assert tokens.mismatch is not None
    return within(tokens.mismatch, settings.kept_band)


def grpo_loss(tokens: TokenValues, settings: LossSettings) -> LossTerms:
    """Clipped policy-gradient loss with importance correction, k3 KL to a reference and an entropy bonus.

    The protocol notes have it in their section 3; docs/objectives.md says which objective chooses what.
    """
    weights = tokens.weights
    surrogate, is_clipped = clipped_surrogate(tokens, settings)
    correction = truncated_importance(tokens.old, tokens.sampler_logprobs, settings.tis_cap)
    masked = torch.zeros_like(weights).sum()
    if (mask := importance_mask(tokens, settings)) is not None:
        correction = correction * mask
        masked = (weights * (1 - mask)).sum()
    policy = -(weights * correction * surrogate).sum()
    clipped = (weights * is_clipped).sum().detach()
    loss, kl = policy, torch.zeros_like(policy)
    if settings.kl_coefficient > 0:
        assert tokens.reference is not None
        kl = (weights * k3(tokens.reference, tokens.logprobs)).sum()
        loss = loss + settings.kl_coefficient * kl
    if settings.entropy_coefficient > 0:
        assert tokens.entropy is not None
        loss = loss - settings.entropy_coefficient * (weights * tokens.entropy).sum()
    return LossTerms(loss, policy.detach(), kl.detach(), clipped, masked)


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
