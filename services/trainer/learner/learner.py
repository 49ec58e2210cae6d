"""The learner: a model with an optimizer that turns scored episodes into new weights.

Weights are kept in float32, and the forward pass computes in the serving dtype (autocast): with small learning rates
an update in bf16 alone would be lost to rounding. The learner knows no services. Every call blocks, so it runs in a
thread of its own.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from research.errors import ConfigurationError, TrainingError
from research.settings import Settings
from services.machine.number_formats import number_format
from services.trainer.entry import UpdateEntry
from services.trainer.learner.loss import MismatchSums, token_weights
from services.trainer.learner.state import read_learner, write_learner
from services.trainer.learner.update import GrpoTokenLoss, SupervisedTokenLoss
from services.trainer.model.batching import (
    MicroBatch,
    TrainingSequence,
    collate,
    pack_micro_batches,
    prompt_groups,
)
from services.trainer.model.forward import blocks_of, load_model, load_sharded
from services.trainer.model.head import TokenLoss, TokenOutput
from services.trainer.model.lora import MergedState, add_lora, require_lora, without_lora, write_adapter
from services.trainer.model.memory import enable_checkpointing, needs_checkpointing
from services.trainer.parallel.division import cost, divide
from services.trainer.parallel.ranks import Ranks
from services.trainer.parallel.shards import by_name, free_gathered, gather_state, whole, write_state, write_whole

# float16 only. The loss is a mean over tokens, so its gradient is about one over their number; the scale that keeps it
# from being rounded to zero begins near that number, and falls when a gradient overflows (D8 of the trainer notes).
_FIRST_SCALE, _BACKOFF, _MAX_OVERFLOWS = 2.0**16, 0.25, 16


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did, for the log; of several optimizer steps, the mean of those that were made.

    `entropy` is estimated on every fourth chunk of tokens, unless `grpo.entropy_coefficient` needs all.
    """

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
    """Owns the trained model, its optimizer and, if the KL term is on, a frozen reference model.

    With several `ranks`, each has a learner, which holds its share of both and computes its share of each update; all
    must be called alike (`Team` sees to that). The result is the same as with one, but for the order of sums.
    """

    def __init__(self, settings: Settings, checkpoint: Path, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self._grpo, self._optim = settings.grpo, settings.optimizer
        self._threads = settings.trainer.threads
        self._temperature = settings.episode.temperature
        self.device = torch.device(device_type(settings.trainer.device))
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())  # that of this rank
        self._dtype: torch.dtype = getattr(torch, number_format(settings.model.dtype, self.device.type).name)
        if self._dtype is torch.float16 and not self.ranks.is_alone:
            raise ConfigurationError("model.dtype: float16 trains in one process only; use bfloat16 (or auto)")
        torch.manual_seed(settings.seed)
        self._lora, self._base_name = settings.lora, settings.model.name
        self.model = self._load(checkpoint)
        # Frozen weights beside LoRA's factors are those of the base model, wherever the run continues.
        self.keeps_trained_only = self._lora.rank > 0
        needs_reference = self._grpo.kl_coefficient > 0
        self.reference: Any = None
        if self._lora.rank:
            require_lora(settings, self.ranks)
            add_lora(self.model, self._lora)
        else:
            freeze_lowest(self.model, self._optim.frozen_layers)
            self.reference = self._load(checkpoint).requires_grad_(False) if needs_reference else None
        if needs_checkpointing(self.model, self._optim, self.device, self.ranks.world):
            enable_checkpointing(self.model)
        self.optimizer = self.new_optimizer(self._optim.learning_rate)
        self.scaler = torch.amp.GradScaler(
            self.device.type,
            init_scale=_FIRST_SCALE,
            backoff_factor=_BACKOFF,
            enabled=self._dtype is torch.float16,
        )
        self._sft_optimizer: torch.optim.AdamW | None = None
        self.updates = 0
        self._broken_off = threading.Event()

    def break_off(self) -> None:
        """From another thread: abort the update under way before its next micro-batch; no update follows."""
        self._broken_off.set()

    def _look_up(self) -> None:
        if self.ranks.any(self._broken_off.is_set()):
            raise TrainingError("the update was aborted")

    def _load(self, checkpoint: Path) -> Any:
        if self.ranks.is_alone:
            weights = self._dtype if self._lora.rank else torch.float32  # frozen weights need no more
            return load_model(checkpoint, self.device, self._temperature, self._dtype, weights)
        return load_sharded(checkpoint, self.device, self._temperature, self._dtype, self.ranks)

    def set_torch_threads(self) -> None:
        """Set torch's threads; the setting applies to the calling thread, so call it in the learner's thread."""
        if self.device.type == "cpu":
            torch.set_num_threads(self._threads)

    def new_optimizer(self, learning_rate: float) -> torch.optim.AdamW:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            trained, lr=learning_rate, betas=self._optim.betas, weight_decay=self._optim.weight_decay, fused=True
        )

    def end_sft(self) -> None:
        """End the supervised phase: the current weights become the reference model of the KL term."""
        self._sft_optimizer = None
        if self.reference is not None:
            self.reference.load_state_dict(self.model.state_dict())

    def save(self, directory: Path) -> None:
        """Write this rank's part of the state to a directory; returns once all have written theirs.

        With LoRA, the factors are there also as an adapter that peft and the policy read.
        """
        write_learner(self, directory)
        if self._lora.rank:
            write_adapter(self.model, self._lora, self._base_name, directory)

    def load(self, directory: Path) -> None:
        """Restore the state that `save` wrote, by any number of ranks."""
        self.ranks.together(lambda: read_learner(self, directory))

    def set_updates(self, updates: int) -> None:
        """Set the number of updates that were made; a schedule may follow it."""
        self.updates = updates

    def write_weights(self, base: Path, directory: Path) -> None:
        """Write the weights as safetensors, with the names and dtypes that `base` has."""
        if self._lora.rank:
            write_state(MergedState(self.model), base, directory)
        else:
            write_whole(self.model, base, directory, self.ranks)

    def gather_weights(self, base: Path) -> dict[str, Tensor]:
        """What `write_weights` would write, as copies in host memory; {} on all ranks but 0."""
        state = MergedState(self.model) if self._lora.rank else by_name(self.model)
        return gather_state(state, base, self.ranks)

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[list[float]]:
        """Log-probability of each sampled token of each sequence, under the current weights."""
        result: list[list[float]] = [[] for _ in sequences]
        shares = self._shares(sequences)
        own = [self._logprobs(self.model, batch) for batch in self._collated(shares, sequences, [0.0] * len(sequences))]
        for share, found in zip(shares, self.ranks.gather(torch.cat(own)), strict=True):
            flat = found.tolist()
            for index in (index for members in share for index in members):
                count = sequences[index].sampled_tokens
                result[index], flat = flat[:count], flat[count:]
        return result

    def grpo_update(self, sequences: Sequence[TrainingSequence], step: int | None = None) -> UpdateReport | None:
        """One GRPO update over all sequences, in one or several optimizer steps; None if it had to be skipped.

        None means that nothing has changed: a sampler log-probability, a loss or a gradient was not finite. If that
        happens in a later optimizer step, the update ends there and reports the steps before.
        """
        # The cap of the importance weights would hide an infinite log-probability.
        if not all(math.isfinite(logprob) for s in sequences for logprob in s.sampler_logprobs):
            return None
        # 1. Divide into mini-batches, and weigh the tokens of each before it is cut into micro-batches.
        mini_batches = [
            self._weighted_batches(mini) for mini in _dealt(sequences, self._grpo.mini_batches, self._is_trained_on)
        ]
        # 2. Prepare what stays fixed: learning rate, reference, and old log-probabilities where a step comes before.
        learning_rate = self._schedule_learning_rate(self.updates + 1 if step is None else step)
        references = [[self._reference_logprobs(batch) for batch in mini] for mini in mini_batches]
        old: list[list[Tensor | None]] = [
            [self._logprobs(self.model, batch) if number else None for batch in mini]
            for number, mini in enumerate(mini_batches)
        ]
        # 3. Take the optimizer steps; the first records its old log-probabilities.
        done: list[dict[str, float]] = []
        rounds = [*zip(mini_batches, references, old, strict=True)] * self._grpo.num_iterations
        for mini, reference, before in rounds:
            if (figures := self._grpo_step(mini, reference, before)) is None:
                break
            done.append(figures)
        # 4. Report the finished steps, and the mismatch before the update.
        if not done:
            return None
        self.updates += 1
        differences = MismatchSums()
        for known, batch in zip(chain(*old), chain(*mini_batches), strict=True):
            if known is not None:
                differences.add(known, batch.sampler_logprobs)
        apart = differences.over(self.ranks.sums, self.ranks.maximum)
        mean = {name: math.fsum(figures[name] for figures in done) / len(done) for name in done[0]}
        return UpdateReport(
            loss=mean["loss"],
            policy_loss=mean["policy"],
            kl=mean["kl"],
            entropy=mean["entropy"],
            clipped_share=mean["clipped"],
            grad_norm=mean["grad_norm"],
            learning_rate=learning_rate,
            tokens=int(self.ranks.sums([sum(len(batch.targets) for batch in chain(*mini_batches))])[0]),
            mismatch_mean=apart.mean,
            mismatch_max=apart.max,
            mismatch_kl=apart.kl,
        )

    def _grpo_step(
        self, batches: Sequence[MicroBatch], references: Sequence[Tensor | None], old: list[Tensor | None]
    ) -> dict[str, float] | None:
        """One optimizer step over the micro-batches; fills in `old` where it is None. None: nothing has changed."""
        sums: dict[str, float] = {}

        def backward() -> float:
            sums.clear()
            sums.update(dict.fromkeys(("loss", "policy", "kl", "clipped", "entropy", "entropy_tokens"), 0.0))
            for index, batch in enumerate(batches):
                loss = GrpoTokenLoss(batch, self._grpo, old[index], references[index], self._scale())
                output = self._backward(batch, loss)
                if old[index] is None:
                    old[index] = output.logprobs
                for name, value in loss.sums.items():
                    sums[name] += value.item()
                sums["entropy"] += output.entropy_sum
                sums["entropy_tokens"] += output.entropy_tokens
            sums.update(zip(sums, self.ranks.sums([*sums.values()]), strict=True))
            return sums["loss"]

        grad_norm = self._optimizer_step(backward, self.optimizer)
        if grad_norm is None:
            return None
        entropy = sums["entropy"] / max(1.0, sums.pop("entropy_tokens"))
        return sums | {"entropy": entropy, "grad_norm": grad_norm}

    def supervised_update(self, sequences: Sequence[TrainingSequence], learning_rate: float, phase: str) -> float:
        """One optimizer step on the negative log-likelihood of the sampled tokens; returns the loss per token.

        Args:
            phase: `sft` has an optimizer of its own, until `end_sft`; `ablation` goes on with that of GRPO.
        """
        optimizer = self.optimizer
        if phase == "sft":
            optimizer = self._sft_optimizer = self._sft_optimizer or self.new_optimizer(learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        weights = token_weights([s.sampled_tokens for s in sequences], "token", 1)
        batches = self._batches(sequences, weights)
        total = 0.0

        def backward() -> float:
            nonlocal total
            scale = self._scale()
            losses = [self._backward(batch, SupervisedTokenLoss(batch, scale)).loss for batch in batches]
            own = sum(loss.item() for loss in losses if loss is not None) / scale.item()
            (total,) = self.ranks.sums([own])
            return total

        if self._optimizer_step(backward, optimizer) is None:
            raise TrainingError("the supervised loss is not finite; lower sft.learning_rate")
        return total

    def _is_trained_on(self, sequence: TrainingSequence) -> bool:
        """Whether any term of the loss has a gradient there; if not, the sequence only counts in the denominators."""
        return sequence.advantage != 0 or self._grpo.kl_coefficient > 0 or self._grpo.entropy_coefficient > 0

    def _weighted_batches(self, sequences: Sequence[TrainingSequence]) -> list[MicroBatch]:
        weights = token_weights(
            [s.sampled_tokens for s in sequences], self._grpo.loss_aggregation, self._grpo.constant_length
        )
        trained = [index for index, sequence in enumerate(sequences) if self._is_trained_on(sequence)]
        return self._batches([sequences[i] for i in trained], [weights[i] for i in trained])

    def _batches(self, sequences: Sequence[TrainingSequence], weights: Sequence[float]) -> list[MicroBatch]:
        """This rank's micro-batches."""
        return self._collated(self._shares(sequences), sequences, weights)

    def _shares(self, sequences: Sequence[TrainingSequence]) -> list[list[list[int]]]:
        """The members of each micro-batch of each rank; every rank comes to the same."""
        groups = pack_micro_batches(sequences, self._optim.micro_batch_tokens)
        hidden: int = self.model.config.get_text_config().hidden_size
        costs = [cost([len(sequences[i].token_ids) for i in members], hidden) for members in groups]
        return [[groups[index] for index in share] for share in divide(costs, self.ranks.world)]

    def _collated(
        self, shares: list[list[list[int]]], sequences: Sequence[TrainingSequence], weights: Sequence[float]
    ) -> list[MicroBatch]:
        own, most = shares[self.ranks.rank], max(map(len, shares))
        return [collate(sequences, members, weights, self.device) for members in [*own, *[[]] * (most - len(own))]]

    def _backward(self, batch: MicroBatch, loss: TokenLoss) -> TokenOutput:
        self._look_up()
        output: TokenOutput = self.model(batch, loss)
        assert output.loss is not None
        output.loss.backward()  # type: ignore[no-untyped-call]
        return output

    def _scale(self) -> Tensor:
        """What the loss is multiplied by: 1, except in float16."""
        return self.scaler.scale(torch.ones((), device=self.device))

    def _optimizer_step(self, backward: Callable[[], float], optimizer: torch.optim.Optimizer) -> float | None:
        """Compute the gradient by `backward`, which returns the loss, clip it and apply it.

        In float16, a gradient that overflows is computed again with a smaller scale.

        Returns the gradient's norm; None, without a change, if it or the loss is not finite.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for _ in range(_MAX_OVERFLOWS):
            loss = backward()
            self.scaler.unscale_(optimizer)
            norm = whole(torch.nn.utils.clip_grad_norm_(parameters, self._optim.max_grad_norm)).item()
            sound = math.isfinite(loss) and math.isfinite(norm)
            if sound:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if self.scaler.is_enabled():
                self.scaler.update()
            if sound or not self.scaler.is_enabled() or not math.isfinite(loss):
                break
        return norm if sound else None

    def _schedule_learning_rate(self, step: int) -> float:
        warmup, last = self._optim.warmup_steps, self._grpo.steps
        share = min(1.0, step / warmup) if warmup else 1.0
        if self._optim.schedule == "linear" and step > warmup:
            share = max(0.0, (last - step + 1) / (last - warmup + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self._optim.learning_rate * share
        return self._optim.learning_rate * share

    def _reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        if self._lora.rank and self._grpo.kl_coefficient > 0:
            with without_lora(self.model):
                return self._logprobs(self.model, batch)
        return None if self.reference is None else self._logprobs(self.reference, batch)

    def _logprobs(self, model: Any, batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            output: TokenOutput = model(batch)
        free_gathered(model)
        return output.logprobs


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


def _dealt(
    sequences: Sequence[TrainingSequence], count: int, is_trained_on: Callable[[TrainingSequence], bool]
) -> list[list[TrainingSequence]]:
    """Mini-batches of whole groups (equal prompts), dealt in turn; those without anything to train on are dropped."""
    dealt: dict[int, list[TrainingSequence]] = defaultdict(list)
    for number, group in enumerate(prompt_groups(sequences)):
        dealt[number % count] += [sequences[i] for i in group]
    return [mini for mini in dealt.values() if any(map(is_trained_on, mini))]


def device_type(name: str) -> str:
    """`cpu` or `cuda`, by `trainer.device`. Raises TrainingError if it asks for a GPU and there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("trainer.device is 'cuda', but torch finds no CUDA device; set it to auto or cpu")
    return name
