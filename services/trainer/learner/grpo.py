"""One GRPO update: mini-batches, what stays fixed in it, the optimizer steps, and the report of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Literal, cast

from torch import Tensor

from research.settings.objectives import ImportanceCorrection
from research.settings.training import GrpoConfig
from services.trainer.entry import UpdateEntry
from services.trainer.learner.compute import Computation
from services.trainer.learner.correction import over_sequences
from services.trainer.learner.likelihood import RightLikelihood, right_likelihood, with_few_right
from services.trainer.learner.loss import MismatchSums
from services.trainer.learner.optimizer_steps import OptimizerSteps
from services.trainer.learner.update import GrpoTokenLoss
from services.trainer.model.batching import MicroBatch, TrainingSequence
from services.trainer.parallel.ranks import Ranks

# Over what a mask of sequences takes the ratio of learner to sampler.
_MASK_LEVELS: dict[ImportanceCorrection, Literal["sequence", "product"]] = {
    "sequence_mask": "product",
    "geometric_mask": "sequence",
}


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did, for the log; of several optimizer steps, the mean of those that were made.

    `entropy` is estimated on every fourth chunk of tokens, unless `grpo.entropy_coefficient` needs all. `clipped_share`
    and `masked_share` are what the clip and the importance mask act on, as sums of loss weights. `right` is None if no
    right episode was measured.
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
    masked_share: float
    right: RightLikelihood | None = None

    def as_entry(self) -> UpdateEntry:
        entry = asdict(self)
        right = entry.pop("right") or {}
        return cast(UpdateEntry, entry | {f"right_{name}": value for name, value in right.items()})


@dataclass(frozen=True, slots=True)
class GrpoUpdate:
    """One update after the other, on the same model; every rank must make the same."""

    settings: GrpoConfig
    compute: Computation
    steps: OptimizerSteps
    ranks: Ranks
    likelihood_share: float

    def make(self, sequences: Sequence[TrainingSequence], step: int) -> UpdateReport | None:
        """Train on all sequences, with the learning rate of a step; None if nothing has changed."""
        # The cap of the importance weights would hide an infinite log-probability.
        if not all(math.isfinite(logprob) for s in sequences for logprob in s.sampler_logprobs):
            return None
        # 1. Divide into mini-batches, and weigh the tokens of each before it is cut into micro-batches.
        sequences = with_few_right(sequences, self.likelihood_share)
        mini_batches = self.compute.mini_batches(sequences)
        # 2. Prepare what stays fixed: learning rate, reference, and old log-probabilities where a step comes before.
        learning_rate = self.steps.schedule(step)
        references = [[self.compute.reference_logprobs(batch) for batch in mini] for mini in mini_batches]
        masks_sequences = self.settings.importance_correction in _MASK_LEVELS
        old: list[list[Tensor | None]] = [
            [self.compute.logprobs(batch) if number or masks_sequences else None for batch in mini]
            for number, mini in enumerate(mini_batches)
        ]
        # 3. Take the optimizer steps; where old log-probabilities are not known yet, the first records them.
        done: list[dict[str, float]] = []
        rounds = [*zip(mini_batches, references, old, strict=True)] * self.settings.num_iterations
        for mini, reference, before in rounds:
            if (figures := self._take_step(mini, reference, before, moved=bool(done))) is None:
                break
            done.append(figures)
        # 4. Report the finished steps, the mismatch before the update, and what became of right episodes.
        if not done:
            return None
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
            masked_share=mean["masked"],
            right=right_likelihood(
                self.compute, self.ranks, sequences, zip(chain(*old), chain(*mini_batches), strict=True)
            ),
        )

    def _take_step(
        self,
        batches: Sequence[MicroBatch],
        references: Sequence[Tensor | None],
        old: list[Tensor | None],
        *,
        moved: bool,
    ) -> dict[str, float] | None:
        """One optimizer step over the micro-batches; fills in `old` where it is None. None: nothing has changed.

        `moved`: the weights are no longer those of `old`.
        """
        sums: dict[str, float] = {}
        log_ratios = [self._log_ratio(*each) if moved else None for each in zip(batches, old, strict=True)]
        mismatches = [self._mismatch(*each) for each in zip(batches, old, strict=True)]

        def backward() -> float:
            sums.clear()
            sums.update(dict.fromkeys(("loss", "policy", "kl", "clipped", "masked", "entropy", "entropy_tokens"), 0.0))
            for index, batch in enumerate(batches):
                loss = GrpoTokenLoss(
                    batch,
                    self.settings,
                    old[index],
                    references[index],
                    self.steps.scale(),
                    log_ratios[index],
                    mismatches[index],
                )
                output = self.compute.backward(batch, loss)
                if old[index] is None:
                    old[index] = output.logprobs
                for name, value in loss.sums.items():
                    sums[name] += value.item()
                sums["entropy"] += output.entropy_sum
                sums["entropy_tokens"] += output.entropy_tokens
            sums.update(zip(sums, self.ranks.sums([*sums.values()]), strict=True))
            return sums["loss"]

        grad_norm = self.steps.take(backward, self.steps.optimizer)
        if grad_norm is None:
            return None
        entropy = sums["entropy"] / max(1.0, sums.pop("entropy_tokens"))
        return sums | {"entropy": entropy, "grad_norm": grad_norm}

    def _log_ratio(self, batch: MicroBatch, old: Tensor | None) -> Tensor | None:
        """[N] of new to old policy over each token's sequence; None at the level of tokens.

        The loss meets a batch in chunks that cut through sequences, so a ratio of sequences takes a pass before it.
        """
        level = self.settings.ratio_level
        if level == "token" or old is None:
            return None
        return over_sequences(self.compute.logprobs(batch) - old, batch.lengths, level)

    def _mismatch(self, batch: MicroBatch, old: Tensor | None) -> Tensor | None:
        """[N] of learner to sampler over each token's sequence; None if nothing is masked by it."""
        if (level := _MASK_LEVELS.get(self.settings.importance_correction)) is None or old is None:
            return None
        return over_sequences(old - batch.sampler_logprobs, batch.lengths, level)
