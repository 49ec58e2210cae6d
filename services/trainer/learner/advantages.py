"""Rewards to advantages: which episodes of a step are trained on, with what advantage, and why others are not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from research.settings import Settings
from research.settings.training import GrpoConfig
from services.trainer.groups import Group, TrainingUse
from services.trainer.learner.batching import TrainingSequence, sequence_of
from services.trainer.learner.loss import group_advantages, keep_extremes


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The sequences of one update, and for every group what became of each of its episodes.

    `zero_signal_groups` counts the groups with equal rewards, which carry no signal.
    """

    sequences: list[TrainingSequence]
    group_uses: list[list[TrainingUse]]
    zero_signal_groups: int

    def uses(self, *, updated: bool) -> list[list[TrainingUse]]:
        """What became of each episode, given whether the update was made."""
        if updated:
            return self.group_uses
        why = "the step made no update"
        return [[replace(use, skip_reason=use.skip_reason or why) for use in group] for group in self.group_uses]


def rewards_of(groups: Sequence[Group], settings: Settings, step: int) -> list[list[float]]:
    """The reward of each episode of each group; in the ablation `shuffled_rewards`, shuffled over the step."""
    rewards = [group.rewards for group in groups]
    if settings.ablation.kind == "shuffled_rewards":
        return shuffle_rewards(rewards, random.Random(f"{settings.seed}/{step}"))
    return rewards


def compute_advantages(groups: Sequence[Group], rewards: Sequence[Sequence[float]], grpo: GrpoConfig) -> TrainingBatch:
    """Compute advantages within each group, and keep the best and worst episodes of each."""
    batch = TrainingBatch([], [], sum(group_advantages(own) is None for own in rewards))
    for group, own in zip(groups, rewards, strict=True):
        uses = _uses(group, own, grpo)
        batch.group_uses.append(uses)
        for member, use in zip(group.members, uses, strict=True):
            if use.skip_reason is None and use.advantage is not None:
                batch.sequences.append(sequence_of(member.episode, use.advantage))
    return batch


def _uses(group: Group, rewards: Sequence[float], grpo: GrpoConfig) -> list[TrainingUse]:
    advantages = group_advantages(rewards, scaled=grpo.scale_advantages)
    if advantages is None:
        alone = "a group of one has nothing to be compared with"
        why = alone if len(rewards) < 2 else f"group without signal, all its rewards are {rewards[0]:.2f}"
        return [TrainingUse(reward, None, why) for reward in rewards]
    kept = keep_extremes(rewards, grpo.train_per_group or len(rewards))

    def skip_reason(index: int) -> str | None:
        if index not in kept:
            return f"not among the {len(kept)} kept of {len(rewards)}"
        if grpo.mask_truncated and group.members[index].episode.stop_reason.truncated:
            return "truncated episodes are masked"
        return None

    return [TrainingUse(reward, advantages[i], skip_reason(i)) for i, reward in enumerate(rewards)]


def shuffle_rewards(rewards: Sequence[Sequence[float]], rng: random.Random) -> list[list[float]]:
    """The same rewards in the same shape, in a random order."""
    pool = [reward for group in rewards for reward in group]
    rng.shuffle(pool)
    dealt = iter(pool)
    return [[next(dealt) for _ in group] for group in rewards]
