"""What an update does to the likelihood of right episodes.

They are reinforced, and may become less likely all the same: wrong episodes that resemble them pull them down. Where
that goes on, training collapses (lazy likelihood displacement, https://arxiv.org/abs/2505.18830; of search agents,
https://arxiv.org/abs/2512.04220).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from services.trainer.learner.compute import Computation
from services.trainer.model.batching import MicroBatch, TrainingSequence
from services.trainer.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class RightLikelihood:
    """Mean log-probability of the tokens of right episodes before and after an update, in nats; how many episodes."""

    before: float
    after: float
    episodes: int


def with_few_right(sequences: Sequence[TrainingSequence], share: float) -> list[TrainingSequence]:
    """The same sequences, of which at most a share (rounded up) is still marked as right, from all over the batch."""
    right = [index for index, sequence in enumerate(sequences) if sequence.right]
    count = min(math.ceil(share * len(sequences)), len(right))
    kept = {right[number * len(right) // count] for number in range(count)}
    return [replace(sequence, right=index in kept) for index, sequence in enumerate(sequences)]


def right_likelihood(
    compute: Computation,
    ranks: Ranks,
    sequences: Sequence[TrainingSequence],
    before: Iterable[tuple[Tensor | None, MicroBatch]],
) -> RightLikelihood | None:
    """Measure the sequences that are marked as right once more; None without any. Every rank must call it alike.

    Args:
        before: this rank's micro-batches of them, with the log-probabilities [N] before the update.
    """
    right = [sequence for sequence in sequences if sequence.right]
    if not right:
        return None
    former = sum(known[batch.right].sum().item() for known, batch in before if known is not None)
    batches = compute.micro_batches(right, [0.0] * len(right))
    latter = sum(compute.logprobs(batch).sum().item() for batch in batches)
    tokens = sum(sequence.sampled_tokens for sequence in right)
    former, latter = ranks.sums([former, latter])
    return RightLikelihood(former / tokens, latter / tokens, len(right))
