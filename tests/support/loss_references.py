"""Random rollouts, and what our loss and TRL's come to on them."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from research.settings.training import GrpoConfig
from services.trainer.learner.correction import over_sequences
from services.trainer.learner.loss import Normalization, TokenValues, grpo_loss, token_weights

CONSTANT_LENGTH = 64


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

    def weights(self, normalization: Normalization) -> Tensor:
        weights = token_weights(self.lengths, normalization, CONSTANT_LENGTH)
        return self.flat(torch.tensor(weights)[:, None].expand_as(self.mask))

    def tokens(self, logprobs: Tensor, settings: GrpoConfig) -> TokenValues:
        """What the loss is given in a later optimizer step, in which the weights are no longer the old ones."""
        own, old, sampler = self.flat(logprobs), self.flat(self.old), self.flat(self.sampler_logprobs)
        log_ratio = mismatch = None
        if settings.ratio_level != "token":
            log_ratio = over_sequences((own - old).detach(), self.lengths, settings.ratio_level)
        if settings.importance_correction in ("sequence_mask", "geometric_mask"):
            level: Any = "product" if settings.importance_correction == "sequence_mask" else "sequence"
            mismatch = over_sequences(old - sampler, self.lengths, level)
        return TokenValues(
            own,
            old,
            sampler,
            self.flat(self.advantages[:, None].expand_as(self.mask)),
            self.weights(settings.loss_aggregation).to(logprobs.dtype),
            self.flat(self.reference),
            self.flat(self.entropy),
            log_ratio,
            mismatch,
        )


def our_loss(batch: Batch, logprobs: Tensor, **settings: Any) -> Tensor:
    """The loss by these settings of `[grpo]`."""
    chosen = GrpoConfig(**settings)
    return grpo_loss(batch.tokens(logprobs, chosen), chosen).loss


def trl_loss(batch: Batch, logprobs: Tensor, loss_type: str, *, importance: bool = True, **changes: Any) -> Tensor:
    """TRL's own `_compute_loss` of GRPO, with the model's forward replaced by the given log-probabilities.

    `changes`: `entropy` (coefficient), `delta`, and attributes of the trainer.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    entropy, delta = changes.pop("entropy", 0.0), changes.pop("delta", None)
    trainer = SimpleNamespace(
        **_trainer(logprobs, batch),
        **{"importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.05} | changes,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        loss_type=loss_type,
        use_vllm=True,
        vllm_importance_sampling_correction=importance,
        max_completion_length=CONSTANT_LENGTH,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=entropy > 0,
        use_adaptive_entropy=False,
        entropy_coef=entropy,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
    )
    inputs = {
        **_inputs(batch),
        "completion_mask": batch.completion_mask,
        "tool_mask": batch.tool_mask,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.reference,
        "importance_sampling_ratio": torch.exp(batch.old - batch.sampler_logprobs).clamp(max=2.0),
        "num_items_in_batch": batch.mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def trl_rloo_loss(batch: Batch, logprobs: Tensor) -> Tensor:
    """TRL's own `_compute_loss` of RLOO; it knows no tool mask, so results of searches are masked as padding is."""
    from trl.trainer.rloo_trainer import RLOOTrainer

    trainer = SimpleNamespace(**_trainer(logprobs, batch), epsilon_low=0.2, epsilon_high=0.2)
    old = (batch.old * batch.mask).sum(1)
    inputs = {**_inputs(batch), "completion_mask": batch.mask, "old_logps": old}
    return RLOOTrainer._compute_loss(trainer, None, inputs)


def _trainer(logprobs: Tensor, batch: Batch) -> dict[str, Any]:
    return {
        "_get_per_token_logps_and_entropies": lambda *args, **kwargs: (logprobs, batch.entropy, None),
        "accelerator": SimpleNamespace(
            num_processes=1, gather=lambda x: x.reshape(-1), reduce=lambda x, reduction: x, sync_gradients=True
        ),
        "aux_loss_enabled": False,
        "model": SimpleNamespace(training=True),
        "_metrics": defaultdict(lambda: defaultdict(list)),
    }


def _inputs(batch: Batch) -> dict[str, Tensor]:
    rows, length = batch.mask.shape
    return {
        "prompt_ids": torch.ones(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.ones(rows, length, dtype=torch.long),
        "advantages": batch.advantages,
    }
