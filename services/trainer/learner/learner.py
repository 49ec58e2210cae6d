"""The learner: a model with an optimizer that turns scored episodes into new weights.

Weights are kept in float32, and the forward pass computes in the serving dtype (autocast): with small learning rates
an update in bf16 alone would be lost to rounding. The learner knows no services. Every call blocks, so it runs in a
thread of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigurationError, TrainingError
from research.settings import Settings
from services.machine.heap import return_freed_memory
from services.machine.number_formats import number_format
from services.trainer.learner.compute import Computation
from services.trainer.learner.grpo import GrpoUpdate, UpdateReport
from services.trainer.learner.loss import token_weights
from services.trainer.learner.optimizer_steps import OptimizerSteps, freeze_lowest
from services.trainer.learner.state import read_learner, write_learner, write_reference
from services.trainer.learner.update import SupervisedTokenLoss
from services.trainer.model.attention import require_whole_context
from services.trainer.model.batching import TrainingSequence
from services.trainer.model.forward import load_model, load_sharded
from services.trainer.model.lora import MergedState, add_lora, require_lora, reset_factors, write_adapter
from services.trainer.model.memory import enable_checkpointing, needs_checkpointing
from services.trainer.parallel.learner_watch import LearnerWatch
from services.trainer.parallel.ranks import Ranks
from services.trainer.parallel.shards import by_name, gather_state, write_whole


class Learner:
    """Owns the trained model, its optimizer and, if the KL term is on, a frozen reference model.

    With several `ranks`, each has a learner, which holds its share of both and computes its share of each update; all
    must be called alike (`Team` sees to that). The result is the same as with one, but for the order of sums.
    """

    def __init__(self, settings: Settings, checkpoint: Path, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self._threads = settings.trainer.threads
        self._temperature = settings.episode.temperature
        self.device = torch.device(device_type(settings.trainer.device))
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())  # that of this rank
        dtype = settings.model.dtype
        # Where it is said, nothing has to be timed.
        self._dtype: torch.dtype = getattr(
            torch, number_format(dtype, self.device.type).name if dtype == "auto" else dtype
        )
        if self._dtype is torch.float16 and not self.ranks.is_alone:
            raise ConfigurationError("model.dtype: float16 trains in one process only; use bfloat16 (or auto)")
        torch.manual_seed(settings.seed)
        self._lora, self._base_name = settings.lora, settings.model.name
        if self._lora.rank:
            require_lora(settings)
        self.model = self._load(checkpoint)
        require_whole_context(self.model.config.get_text_config(), settings.episode.max_tokens)
        # Frozen weights beside LoRA's factors are those of the base model, wherever the run continues.
        self.keeps_trained_only = self._lora.rank > 0
        needs_reference = settings.grpo.kl_coefficient > 0
        self.reference: Any = None
        if self._lora.rank:
            reset_factors(self.model, settings.seed)
        else:
            freeze_lowest(self.model, settings.optimizer.frozen_layers)
            self.reference = self._load(checkpoint).requires_grad_(False) if needs_reference else None
        longest = max(settings.optimizer.micro_batch_tokens, settings.model.max_model_len)
        if needs_checkpointing(self.model, settings.optimizer, self.device, longest, self.ranks.world):
            enable_checkpointing(self.model)
        self._compute = Computation(settings, self.model, self.reference, self.device, self.ranks)
        self._steps = OptimizerSteps(settings, self.model, self.device, scaled=self._dtype is torch.float16)
        self.optimizer, self.scaler = self._steps.optimizer, self._steps.scaler
        self._grpo = GrpoUpdate(settings.grpo, self._compute, self._steps, self.ranks, settings.alarms.likelihood_share)
        self._sft_optimizer: torch.optim.AdamW | None = None
        self.updates = 0
        self._reference_changes = 0

    @property
    def reference_changes(self) -> int | None:
        """How often the reference was set since this learner was made; None if there is none."""
        return None if self.reference is None else self._reference_changes

    @property
    def watch(self) -> LearnerWatch:
        """Sees whether the thread that works here hangs."""
        return self._compute.watch

    def break_off(self) -> None:
        """From another thread: abort the update under way before its next micro-batch; no update follows."""
        self._compute.break_off()

    def _load(self, checkpoint: Path) -> Any:
        if self.ranks.is_alone:
            if not self._lora.rank:
                return load_model(checkpoint, self.device, self._temperature, self._dtype)
            # Frozen weights need no more than the format in which they compute.
            model = load_model(checkpoint, self.device, self._temperature, self._dtype, self._dtype)
            add_lora(model, self._lora)
            return model
        lora = self._lora if self._lora.rank else None
        return load_sharded(checkpoint, self.device, self._temperature, self._dtype, self.ranks, lora)

    def set_torch_threads(self) -> None:
        """Set torch's threads; the setting applies to the calling thread, so call it in the learner's thread."""
        if self.device.type == "cpu":
            torch.set_num_threads(self._threads)

    def end_sft(self) -> None:
        """End the supervised phase: the current weights become the reference model of the KL term."""
        self._sft_optimizer = None
        return_freed_memory()
        if self.reference is not None:
            self.reference.load_state_dict(self.model.state_dict())
            self._reference_changes += 1

    def save(self, directory: Path) -> None:
        """Write this rank's part of the state, without the reference; returns once all have written theirs.

        With LoRA, the factors are there also as an adapter that peft and the policy read.
        """
        write_learner(self, directory)
        if self._lora.rank:
            write_adapter(self.model, self._lora, self._base_name, directory, self.ranks)

    def save_reference(self, directory: Path) -> None:
        """Write this rank's part of the reference; returns once all have written theirs."""
        write_reference(self, directory)

    def load(self, directory: Path, reference: Path) -> None:
        """Restore what `save` and `save_reference` wrote, by any number of ranks."""
        self._reference_changes += 1  # also if it fails halfway
        self.ranks.together(lambda: read_learner(self, directory, reference))

    def set_updates(self, updates: int) -> None:
        """Set the number of updates that were made; a schedule may follow it."""
        self.updates = updates

    def write_weights(self, base: Path, directory: Path) -> None:
        """Write the weights as safetensors, with the names and dtypes that `base` has."""
        write_whole(self._state(), base, directory, self.ranks)

    def gather_weights(self, base: Path) -> dict[str, Tensor]:
        """What `write_weights` would write, as copies in host memory; {} on all ranks but 0."""
        return gather_state(self._state(), base, self.ranks)

    def _state(self) -> Mapping[str, Tensor]:
        """The weights as they are published."""
        return MergedState(self.model) if self._lora.rank else by_name(self.model)

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[list[float]]:
        """Log-probability of each sampled token of each sequence, under the current weights."""
        return self._compute.logprobs_of_all(sequences)

    def grpo_update(self, sequences: Sequence[TrainingSequence], step: int | None = None) -> UpdateReport | None:
        """One GRPO update over all sequences, in one or several optimizer steps; None if it had to be skipped.

        None means that nothing has changed: no sequence has anything to train on, or a sampler log-probability, a loss
        or a gradient was not finite. If that happens in a later optimizer step, the update ends there and reports the
        steps before.
        """
        report = self._grpo.make(sequences, self.updates + 1 if step is None else step)
        return_freed_memory()
        if report is not None:
            self.updates += 1
        return report

    def supervised_update(self, sequences: Sequence[TrainingSequence], learning_rate: float, phase: str) -> float:
        """One optimizer step on the negative log-likelihood of the sampled tokens; returns the loss per token.

        Args:
            phase: `sft` has an optimizer of its own, until `end_sft`; `ablation` goes on with that of GRPO.
        """
        optimizer = self.optimizer
        if phase == "sft":
            optimizer = self._sft_optimizer = self._sft_optimizer or self._steps.new_optimizer(learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        weights = token_weights([s.sampled_tokens for s in sequences], "token", 1)
        batches = self._compute.micro_batches(sequences, weights)
        total = 0.0

        def backward() -> float:
            nonlocal total
            scale = self._steps.scale()
            losses = [self._compute.backward(batch, SupervisedTokenLoss(batch, scale)).loss for batch in batches]
            own = sum(loss.item() for loss in losses if loss is not None) / scale.item()
            (total,) = self.ranks.sums([own])
            return total

        if self._steps.take(backward, optimizer) is None:
            raise TrainingError("the supervised loss is not finite; lower sft.learning_rate")
        return total


def device_type(name: str) -> str:
    """`cpu` or `cuda`, by `trainer.device`. Raises TrainingError if it asks for a GPU and there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("trainer.device is 'cuda', but torch finds no CUDA device; set it to auto or cpu")
    return name
