"""The learner: a model with an optimizer that turns scored episodes into new weights.

Weights are kept in float32, and the forward pass computes in the serving dtype (autocast): with small learning rates
an update in bf16 alone would be lost to rounding. The learner knows no services. Every call blocks, so it runs in a
thread of its own.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from research.errors import TrainingError
from research.settings import Settings
from services.machine.number_formats import number_format
from services.trainer.entry import UpdateEntry
from services.trainer.learner.batching import MicroBatch, TrainingSequence, collate, pack_micro_batches
from services.trainer.learner.loss import grpo_loss, mismatch, token_weights


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did, for the log."""

    loss: float
    policy_loss: float
    kl: float
    entropy: float
    clipped_share: float
    grad_norm: float
    learning_rate: float
    tokens: int
    mismatch_mean: float
    mismatch_max: float
    mismatch_kl: float

    def as_entry(self) -> UpdateEntry:
        return cast(UpdateEntry, asdict(self))


class Learner:
    """Owns the trained model, its optimizer and, if the KL term is on, a frozen reference model."""

    def __init__(self, settings: Settings, checkpoint: Path) -> None:
        self._grpo, self._optim = settings.grpo, settings.optimizer
        self._threads = settings.trainer.threads
        self._temperature = settings.episode.temperature
        self.device = _device(settings.trainer.device)
        self._dtype: torch.dtype = getattr(torch, number_format(settings.model.dtype, self.device.type).name)
        torch.manual_seed(settings.seed)
        self.model = self._load(checkpoint)
        freeze_lowest(self.model, self._optim.frozen_layers)
        self.reference = self._load(checkpoint).requires_grad_(False) if self._grpo.kl_coefficient > 0 else None
        self.optimizer = self.new_optimizer(self._optim.learning_rate)
        self.updates = 0
        self._broken_off = threading.Event()

    def break_off(self) -> None:
        """From another thread: abort the update under way before its next micro-batch; no update follows."""
        self._broken_off.set()

    def _look_up(self) -> None:
        if self._broken_off.is_set():
            raise TrainingError("the update was aborted")

    def _load(self, checkpoint: Path) -> Any:
        transformers_logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
        return model.to(self.device).eval()  # eval: dropout would make the learner another policy than the sampler

    def set_torch_threads(self) -> None:
        """Set torch's threads; the setting applies to the calling thread, so call it in the learner's thread."""
        if self.device.type == "cpu":
            torch.set_num_threads(self._threads)

    def new_optimizer(self, learning_rate: float) -> torch.optim.AdamW:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            trained, lr=learning_rate, betas=self._optim.betas, weight_decay=self._optim.weight_decay
        )

    def snapshot_reference(self) -> None:
        """Make the current weights the reference model of the KL term (after the supervised phase)."""
        if self.reference is not None:
            self.reference.load_state_dict(self.model.state_dict())

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[list[float]]:
        """Log-probability of each sampled token of each sequence, under the current weights."""
        result: list[list[float]] = [[] for _ in sequences]
        for members in pack_micro_batches(sequences, self._optim.micro_batch_tokens):
            batch = collate(sequences, members, [0.0] * len(sequences), self.device)
            with torch.no_grad():
                flat = self._forward(self.model, batch)[0].tolist()
            for index in members:
                count = sequences[index].sampled_tokens
                result[index], flat = flat[:count], flat[count:]
        return result

    def grpo_update(self, sequences: Sequence[TrainingSequence], step: int | None = None) -> UpdateReport | None:
        """One GRPO update over all sequences, in one or several optimizer steps; None if it had to be skipped.

        None means that nothing has changed: a sampler log-probability, a loss or a gradient was not finite. If that
        happens in a later optimizer step, the update ends there and reports the steps before.
        """
        # 1. Weigh the tokens over the whole update, then cut it into micro-batches.
        weights = token_weights(
            [s.sampled_tokens for s in sequences], self._grpo.loss_aggregation, self._grpo.constant_length
        )
        sampled_tokens = sum(s.sampled_tokens for s in sequences)
        groups = pack_micro_batches(sequences, self._optim.micro_batch_tokens)
        batches = [collate(sequences, members, weights, self.device) for members in groups]
        # The cap of the importance weights would hide an infinite log-probability.
        if not all(bool(torch.isfinite(batch.sampler_logprobs).all()) for batch in batches):
            return None
        # 2. Prepare what stays fixed: reference log-probabilities and learning rate.
        references = [self._reference_logprobs(batch) for batch in batches]
        learning_rate = self._schedule_learning_rate(self.updates + 1 if step is None else step)
        # 3. Take the optimizer steps, each over all micro-batches; the first records the old log-probabilities.
        old: list[Tensor] = []
        done: dict[str, float] = {}
        for iteration in range(self._grpo.num_iterations):
            sums = dict.fromkeys(("loss", "policy", "kl", "clipped", "entropy"), 0.0)
            for index, batch in enumerate(batches):
                self._look_up()
                logprobs, entropy = self._forward(self.model, batch)
                if iteration == 0:
                    old.append(logprobs.detach())
                terms = grpo_loss(
                    logprobs,
                    old[index],
                    batch.sampler_logprobs,
                    batch.advantages,
                    batch.weights,
                    clip_low=self._grpo.clip_low,
                    clip_high=self._grpo.clip_high,
                    tis_cap=self._grpo.tis_cap,
                    reference=references[index],
                    kl_coefficient=self._grpo.kl_coefficient,
                    entropy=entropy,
                    entropy_coefficient=self._grpo.entropy_coefficient,
                )
                terms.loss.backward()  # type: ignore[no-untyped-call]
                sums["loss"] += terms.loss.item()
                sums["policy"] += terms.policy.item()
                sums["kl"] += terms.kl.item()
                sums["clipped"] += terms.clipped.item()
                sums["entropy"] += entropy.detach().sum().item() / sampled_tokens
            grad_norm = self._optimizer_step(sums["loss"])
            if grad_norm is None:
                break
            done = sums | {"grad_norm": grad_norm}
        # 4. Report the last finished step, and the mismatch before the update.
        if not done:
            return None
        self.updates += 1
        apart = mismatch(torch.cat(old), torch.cat([batch.sampler_logprobs for batch in batches]))
        return UpdateReport(
            loss=done["loss"],
            policy_loss=done["policy"],
            kl=done["kl"],
            entropy=done["entropy"],
            clipped_share=done["clipped"],
            grad_norm=done["grad_norm"],
            learning_rate=learning_rate,
            tokens=sampled_tokens,
            mismatch_mean=apart.mean,
            mismatch_max=apart.max,
            mismatch_kl=apart.kl,
        )

    def supervised_update(self, sequences: Sequence[TrainingSequence], optimizer: torch.optim.Optimizer) -> float:
        """One optimizer step on the negative log-likelihood of the sampled tokens; returns the loss per token."""
        weights = token_weights([s.sampled_tokens for s in sequences], "token", 1)
        loss_sum = 0.0
        for members in pack_micro_batches(sequences, self._optim.micro_batch_tokens):
            self._look_up()
            batch = collate(sequences, members, weights, self.device)
            loss = -(batch.weights * self._forward(self.model, batch)[0]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
        if self._optimizer_step(loss_sum, optimizer) is None:
            raise TrainingError("the supervised loss is not finite; lower sft.learning_rate")
        return loss_sum

    def _optimizer_step(self, loss: float, optimizer: torch.optim.Optimizer | None = None) -> float | None:
        """Clip and apply the gradient; returns its norm, or None, without a change, if it or the loss is not finite."""
        optimizer = optimizer or self.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._optim.max_grad_norm).item()
        sound = math.isfinite(loss) and math.isfinite(norm)
        if sound:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm if sound else None

    def _schedule_learning_rate(self, step: int) -> float:
        warmup, last = self._optim.warmup_steps, self._grpo.steps
        share = min(1.0, step / warmup) if warmup else 1.0
        if self._optim.schedule == "linear" and step > warmup:
            share = max(0.0, (last - step + 1) / (last - warmup + 1))
        self.set_learning_rate(self._optim.learning_rate * share)
        return self._optim.learning_rate * share

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the rate of the GRPO optimizer; `grpo_update` sets it by schedule itself."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def _reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            return self._forward(self.reference, batch)[0]

    def _forward(self, model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] of the sampled tokens and entropies [N] of their distributions.

        Only positions that predict a sampled token go through the vocabulary projection, the costliest layer of a
        small model.
        """
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            hidden = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            chosen = hidden.last_hidden_state[batch.rows, batch.columns]
            logits = model.get_output_embeddings()(chosen)
        scaled = logits.float() / self._temperature
        normalizer = torch.logsumexp(scaled, dim=-1)
        logprobs = scaled.gather(-1, batch.targets[:, None]).squeeze(-1) - normalizer
        needs_gradient = self._grpo.entropy_coefficient > 0
        with torch.set_grad_enabled(needs_gradient and torch.is_grad_enabled()):
            entropy = normalizer - (torch.softmax(scaled, dim=-1) * scaled).sum(-1)
        return logprobs, entropy


def freeze_lowest(model: Any, layers: int) -> None:
    """Freeze the embeddings and the lowest layers; 0 trains everything.

    Raises TrainingError if nothing would be left to train.
    """
    if layers == 0:
        return
    blocks = _blocks(model)
    if layers >= len(blocks):
        raise TrainingError(f"optimizer.frozen_layers = {layers} leaves nothing to train; set it below {len(blocks)}")
    model.get_input_embeddings().requires_grad_(False)
    for block in blocks[:layers]:
        block.requires_grad_(False)


def _blocks(model: Any) -> torch.nn.ModuleList:
    for module in model.base_model.children():
        if isinstance(module, torch.nn.ModuleList):
            return module
    raise TrainingError(f"cannot find the layers of {type(model).__name__}; set optimizer.frozen_layers = 0")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("trainer.device is 'cuda', but torch finds no CUDA device; set it to auto or cpu")
    return torch.device(name)
