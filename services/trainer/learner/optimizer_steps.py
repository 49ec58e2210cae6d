"""From a gradient to new weights: what is trained, the learning rate, clipping, and the loss scale of float16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from research.errors import TrainingError
from research.settings import Settings
from services.trainer.model.forward import blocks_of
from services.trainer.parallel.shards import whole

# float16 only. The loss is a mean over tokens, so its gradient is about one over their number; the scale that keeps it
# from being rounded to zero begins near that number, and falls when a gradient overflows (D8 of the trainer notes).
_FIRST_SCALE, _BACKOFF, _MAX_OVERFLOWS = 2.0**16, 0.25, 16


class OptimizerSteps:
    """The optimizer of a run, its learning-rate schedule and its loss scale."""

    def __init__(self, settings: Settings, model: Any, device: torch.device, *, scaled: bool) -> None:
        """`scaled`: the model computes in float16."""
        self._settings, self._last_step = settings.optimizer, settings.grpo.steps
        self._model, self._device = model, device
        self.optimizer = self.new_optimizer(self._settings.learning_rate)
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=_FIRST_SCALE, backoff_factor=_BACKOFF, enabled=scaled
        )

    def new_optimizer(self, learning_rate: float) -> torch.optim.AdamW:
        trained = [p for p in self._model.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            trained,
            lr=learning_rate,
            betas=self._settings.betas,
            weight_decay=self._settings.weight_decay,
            fused=True,
        )

    def schedule(self, step: int) -> float:
        """Set the learning rate of a training step, counted from 1; returns it."""
        warmup, last = self._settings.warmup_steps, self._last_step
        share = min(1.0, step / warmup) if warmup else 1.0
        if self._settings.schedule == "linear" and step > warmup:
            share = max(0.0, (last - step + 1) / (last - warmup + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * share
        return self._settings.learning_rate * share

    def scale(self) -> Tensor:
        """What the loss is multiplied by: 1, except in float16."""
        return self.scaler.scale(torch.ones((), device=self._device))

    def take(self, backward: Callable[[], float], optimizer: torch.optim.Optimizer) -> float | None:
        """Compute the gradient by `backward`, which returns the loss, clip it and apply it.

        In float16, a gradient that overflows is computed again with a smaller scale.

        Returns the gradient's norm; None, without a change, if it or the loss is not finite.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for _ in range(_MAX_OVERFLOWS):
            loss = backward()
            self.scaler.unscale_(optimizer)
            norm = whole(torch.nn.utils.clip_grad_norm_(parameters, self._settings.max_grad_norm)).item()
            sound = math.isfinite(loss) and math.isfinite(norm)
            if sound:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if self.scaler.is_enabled():
                self.scaler.update()
            if sound or not self.scaler.is_enabled() or not math.isfinite(loss):
                break
        return norm if sound else None


def freeze_lowest(model: Any, layers: int) -> None:
    """Freeze the embeddings and the lowest layers; 0 trains everything.

    Raises TrainingError if nothing would be left to train.
    """
    if layers == 0:
        return
    blocks = blocks_of(model)
    if layers >= len(blocks):
        raise TrainingError(f"optimizer.frozen_layers = {layers} leaves nothing to train; set it below {len(blocks)}")
    model.get_input_embeddings().requires_grad_(False)
    for block in blocks[:layers]:
        block.requires_grad_(False)
