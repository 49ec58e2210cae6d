"""Importance correction: what the difference between sampler and learner does to a token's weight in the loss.

Ratios are of the learner's policy before the update to the sampler's, on the sampled tokens. A mask leaves tokens out
of the policy term; they stay in the denominators, which are fixed before any ratio is known, and in the KL and entropy
terms. verl's rejection masks (`rollout_rs`) have the same numerators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0


def truncated_importance(old: Tensor, sampler_logprobs: Tensor, cap: float | None) -> Tensor:
    """min(exp(old - sampler), cap) per token: corrects the difference between sampler and learner (TIS)."""
    return torch.ones_like(old) if cap is None else torch.exp(old - sampler_logprobs).clamp(max=cap)


def over_sequences(values: Tensor, lengths: Sequence[int], level: Literal["sequence", "product"]) -> Tensor:
    """[N] the mean (`sequence`) or sum (`product`) of each sequence's values, repeated for its tokens.

    Args:
        values: [N], sequences one after the other.
        lengths: tokens of each sequence; they add up to N.
    """
    # Split instead of scattered, whose order of sums is not fixed on a GPU.
    parts = torch.split(values.double(), [*lengths])
    reduced = [part.mean() if level == "sequence" else part.sum() for part in parts]
    return torch.cat([one.expand_as(part) for one, part in zip(reduced, parts, strict=True)]).to(values.dtype)


def within(log_ratio: Tensor, band: tuple[float, float]) -> Tensor:
    """[N] 1 where exp(log_ratio) lies in the band, bounds included, else 0."""
    ratio = torch.exp(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    return ((ratio >= band[0]) & (ratio <= band[1])).to(log_ratio.dtype)
