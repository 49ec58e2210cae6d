"""What a rank computes: its share of the micro-batches, and the forward and backward passes over them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.errors import TrainingError
from research.settings import Settings
from services.trainer.learner.loss import token_weights
from services.trainer.model.batching import MicroBatch, TrainingSequence, collate, pack_micro_batches, prompt_groups
from services.trainer.model.head import TokenLoss, TokenOutput
from services.trainer.model.lora import without_lora
from services.trainer.parallel.division import cost, divide
from services.trainer.parallel.learner_watch import LearnerWatch
from services.trainer.parallel.ranks import Ranks
from services.trainer.parallel.shards import free_gathered


class Computation:
    """Divides sequences over ranks and computes this rank's part; every rank must call it alike."""

    def __init__(self, settings: Settings, model: Any, reference: Any, device: torch.device, ranks: Ranks) -> None:
        """`reference`: the frozen model of the KL term; None without the term, or with LoRA."""
        self._grpo, self._micro_batch_tokens = settings.grpo, settings.optimizer.micro_batch_tokens
        self._has_lora = settings.lora.rank > 0
        self._model, self._reference = model, reference
        self._device, self._ranks = device, ranks
        self._broken_off = threading.Event()
        self.watch = LearnerWatch()

    def break_off(self) -> None:
        """From another thread: the next pass, and each after it, raises TrainingError on every rank."""
        self._broken_off.set()

    def mini_batches(self, sequences: Sequence[TrainingSequence]) -> list[list[MicroBatch]]:
        """This rank's micro-batches of each mini-batch; their tokens were weighed before they were cut."""
        return [self._weighted(mini) for mini in self._dealt(sequences)]

    def micro_batches(self, sequences: Sequence[TrainingSequence], weights: Sequence[float]) -> list[MicroBatch]:
        """This rank's micro-batches; `weights` is what a token of each sequence counts in the loss."""
        return self._collated(self._shares(sequences), sequences, weights)

    def logprobs_of_all(self, sequences: Sequence[TrainingSequence]) -> list[list[float]]:
        """Log-probability of each sampled token of each sequence, of all ranks, under the current weights."""
        result: list[list[float]] = [[] for _ in sequences]
        shares = self._shares(sequences)
        own = [self.logprobs(batch) for batch in self._collated(shares, sequences, [0.0] * len(sequences))]
        for share, found in zip(shares, self._ranks.gather(torch.cat(own)), strict=True):
            flat = found.tolist()
            for index in (index for members in share for index in members):
                count = sequences[index].sampled_tokens
                result[index], flat = flat[:count], flat[count:]
        return result

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """[N] log-probabilities of a micro-batch under the current weights, without a gradient."""
        return self._forward(self._model, batch)

    def reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        """[N] log-probabilities under the reference; None without the KL term."""
        if self._has_lora and self._grpo.kl_coefficient > 0:
            with without_lora(self._model):
                return self._forward(self._model, batch)
        return None if self._reference is None else self._forward(self._reference, batch)

    def backward(self, batch: MicroBatch, loss: TokenLoss) -> TokenOutput:
        """Add the gradient of a micro-batch. Raises TrainingError if the update was broken off."""
        self._begin_pass()
        output: TokenOutput = self._model(batch, loss)
        assert output.loss is not None
        output.loss.backward()  # type: ignore[no-untyped-call]
        batch.layout.forget_masks()
        return output

    def _forward(self, model: Any, batch: MicroBatch) -> Tensor:
        self._begin_pass()
        with torch.no_grad():
            output: TokenOutput = model(batch)
        free_gathered(model)
        batch.layout.forget_masks()
        return output.logprobs

    def _begin_pass(self) -> None:
        if self._ranks.any(self._broken_off.is_set()):
            raise TrainingError("the update was aborted")
        self.watch.beat()

    def _is_trained_on(self, sequence: TrainingSequence) -> bool:
        """Whether any term of the loss has a gradient there; if not, the sequence only counts in the denominators."""
        return any(sequence.advantages) or self._grpo.kl_coefficient > 0 or self._grpo.entropy_coefficient > 0

    def _dealt(self, sequences: Sequence[TrainingSequence]) -> list[list[TrainingSequence]]:
        """Mini-batches of whole groups (equal prompts), dealt in turn; without those that have nothing to train on."""
        dealt: dict[int, list[TrainingSequence]] = defaultdict(list)
        for number, group in enumerate(prompt_groups(sequences)):
            dealt[number % self._grpo.mini_batches] += [sequences[i] for i in group]
        return [mini for mini in dealt.values() if any(map(self._is_trained_on, mini))]

    def _weighted(self, sequences: Sequence[TrainingSequence]) -> list[MicroBatch]:
        weights = token_weights(
            [s.sampled_tokens for s in sequences], self._grpo.loss_aggregation, self._grpo.constant_length
        )
        trained = [index for index, sequence in enumerate(sequences) if self._is_trained_on(sequence)]
        return self.micro_batches([sequences[i] for i in trained], [weights[i] for i in trained])

    def _shares(self, sequences: Sequence[TrainingSequence]) -> list[list[list[int]]]:
        """The members of each micro-batch of each rank; every rank comes to the same."""
        groups = pack_micro_batches(sequences, self._micro_batch_tokens)
        hidden: int = self._model.config.get_text_config().hidden_size
        costs = [cost([len(sequences[i].token_ids) for i in members], hidden) for members in groups]
        return [[groups[index] for index in share] for share in divide(costs, self._ranks.world)]

    def _collated(
        self, shares: list[list[list[int]]], sequences: Sequence[TrainingSequence], weights: Sequence[float]
    ) -> list[MicroBatch]:
        own, most = shares[self._ranks.rank], max(map(len, shares))
        return [collate(sequences, members, weights, self._device) for members in [*own, *[[]] * (most - len(own))]]
