"""Which episodes of a step are trained on, and with what advantage."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from research.settings import Settings
from services.trainer.groups import Group
from services.trainer.learner.batching import TrainingSequence, sequence_of
from services.trainer.learner.loss import group_advantages, keep_extremes


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The sequences of one update; `zero_signal_groups` groups had equal rewards and so carry no signal."""

    sequences: list[TrainingSequence]
    zero_signal_groups: int


def compute_advantages(groups: Sequence[Group], settings: Settings, step: int) -> TrainingBatch:
    """Advantages within each group, and of each group its best and worst episodes.

    With the control `shuffled_rewards`, the rewards of the whole batch are dealt out at random first.
    """
    rewards = [group.rewards for group in groups]
    if settings.ablation.kind == "shuffled_rewards":
        rewards = shuffle_rewards(rewards, random.Random(f"{settings.seed}/{step}"))
    scaled = settings.grpo.scale_advantages
    selection = TrainingBatch([], sum(group_advantages(each) is None for each in rewards))
    for group, own in zip(groups, rewards, strict=True):
        advantages = group_advantages(own, scaled=scaled)
        if advantages is None:
            continue
        for index in keep_extremes(own, settings.grpo.train_per_group or len(own)):
            episode = group.members[index].episode
            if not (settings.grpo.mask_truncated and episode.stop_reason.truncated):
                selection.sequences.append(sequence_of(episode, advantages[index]))
    return selection


def shuffle_rewards(rewards: Sequence[Sequence[float]], rng: random.Random) -> list[list[float]]:
    """The same rewards in the same shape, in a random order."""
    pool = [reward for group in rewards for reward in group]
    rng.shuffle(pool)
    dealt = iter(pool)
    return [[next(dealt) for _ in group] for group in rewards]
