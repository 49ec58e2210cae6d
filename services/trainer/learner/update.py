"""The loss of one micro-batch of GRPO or of the supervised phase, as `head.token_loss` calls it chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.trainer.learner.loss import LossSettings, TokenValues, grpo_loss
from services.trainer.model.batching import MicroBatch


@dataclass(slots=True)
class GrpoTokenLoss:
    """The GRPO loss of a micro-batch, times `scale`; it also sums the parts for the log, unscaled.

    `old`, `reference`, `log_ratio` and `mismatch` are [N] or None: without `old`, the current log-probabilities are the
    old ones; for the last two see `TokenValues`.
    """

    batch: MicroBatch
    settings: LossSettings
    old: Tensor | None
    reference: Tensor | None
    scale: Tensor
    log_ratio: Tensor | None = None
    mismatch: Tensor | None = None
    sums: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = {name: torch.zeros_like(self.scale) for name in ("loss", "policy", "kl", "clipped", "masked")}

    @property
    def needs_entropy(self) -> bool:
        return self.settings.entropy_coefficient > 0

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, part: slice) -> Tensor:
        tokens = TokenValues(
            logprobs,
            logprobs.detach() if self.old is None else self.old[part],
            self.batch.sampler_logprobs[part],
            self.batch.advantages[part],
            self.batch.weights[part],
            None if self.reference is None else self.reference[part],
            entropy,
            None if self.log_ratio is None else self.log_ratio[part],
            None if self.mismatch is None else self.mismatch[part],
        )
        terms = grpo_loss(tokens, self.settings)
        self.sums["loss"] += terms.loss.detach()
        self.sums["policy"] += terms.policy
        self.sums["kl"] += terms.kl
        self.sums["clipped"] += terms.clipped
        self.sums["masked"] += terms.masked
        return terms.loss * self.scale


@dataclass(frozen=True, slots=True)
class SupervisedTokenLoss:
    """The weighted negative log-likelihood of a micro-batch, times `scale`."""

    batch: MicroBatch
    scale: Tensor
    needs_entropy: bool = False

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, part: slice) -> Tensor:
        return -(self.batch.weights[part] * logprobs).sum() * self.scale
