"""Rewards to advantages: which episodes of a step are trained on, with what advantage, and why others are not.

What counts where (docs/adr/063):

- An advantage compares an episode with those of its group that are trained on (or of the batch, by `grpo.advantage`),
  so that the advantages of what is trained sum to zero. Episodes left out (truncated ones that are masked, those not
  among the kept) have none.
- Episodes left out are in no denominator of the loss.
- Groups without signal (if the batch is compared, a batch without) are left out too, unless `grpo.count_silent_groups`;
  then they are trained on with advantage 0: they count in the denominators and get the KL and entropy terms, as in verl
  and TRL.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from research.episode.agent import Episode
from research.settings import Settings
from research.settings.training import GrpoConfig
from services.trainer.groups import Group, TrainingUse
from services.trainer.learner.estimators import (
    batch_advantages,
    group_advantages,
    keep_most_varied,
    leave_one_out_advantages,
)
from services.trainer.model.batching import TrainingSequence, sequence_of


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The sequences of one update, and for every group what became of each of its episodes.

    `zero_signal_groups` counts the groups whose trained episodes have equal rewards, which carry no signal.
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
    """Choose what is trained on and compute its advantages."""
    choices = [_choose(group, own, grpo) for group, own in zip(groups, rewards, strict=True)]
    batch = TrainingBatch([], [], sum(choice.is_silent for choice in choices))
    for choice, advantages in zip(choices, _of_kept(choices, grpo), strict=True):
        uses = _uses(choice, advantages, grpo)
        batch.group_uses.append(uses)
        for member, use in zip(choice.group.members, uses, strict=True):
            if use.skip_reason is None and use.advantage is not None:
                tokens = member.episode.sampled_tokens
                batch.sequences.append(sequence_of(member.episode, [use.advantage] * tokens))
    return batch


@dataclass(frozen=True, slots=True)
class _Choice:
    """Of a group, the indexes of the members that may be trained on, and of those that are kept."""

    group: Group
    rewards: Sequence[float]
    trainable: list[int]
    kept: list[int]

    @property
    def kept_rewards(self) -> list[float]:
        return [self.rewards[i] for i in self.kept]

    @property
    def is_silent(self) -> bool:
        return len(set(self.kept_rewards)) < 2


def _choose(group: Group, rewards: Sequence[float], grpo: GrpoConfig) -> _Choice:
    trainable = _trainable(group, grpo)
    keep = grpo.train_per_group or len(trainable)
    kept = [trainable[i] for i in keep_most_varied([rewards[i] for i in trainable], keep)]
    return _Choice(group, rewards, trainable, kept)


def _of_kept(choices: Sequence[_Choice], grpo: GrpoConfig) -> list[list[float] | None]:
    """The advantages of the kept of each group, by `grpo.advantage`; None for a group without signal."""
    scaled = grpo.scale_advantages
    match grpo.advantage:
        case "group":
            return [group_advantages(choice.kept_rewards, scaled=scaled) for choice in choices]
        case "leave_one_out":
            return [leave_one_out_advantages(choice.kept_rewards, scaled=scaled) for choice in choices]
        case "batch":
            everything = {reward for choice in choices for reward in choice.kept_rewards}
            return _over_batch(choices, [c.kept_rewards if len(everything) > 1 else None for c in choices], scaled)
        case "group_and_batch":
            values = [group_advantages(choice.kept_rewards, scaled=False) for choice in choices]
            if grpo.count_silent_groups:
                values = [value or [0.0] * len(c.kept) for value, c in zip(values, choices, strict=True)]
            return _over_batch(choices, values, scaled)


def _over_batch(
    choices: Sequence[_Choice], values: Sequence[list[float] | None], scaled: bool
) -> list[list[float] | None]:
    counted = [(choice, own) for choice, own in zip(choices, values, strict=True) if own is not None]
    lengths = [choice.group.members[i].episode.sampled_tokens for choice, _ in counted for i in choice.kept]
    found = iter(batch_advantages([value for _, own in counted for value in own], lengths, scaled=scaled))
    return [None if own is None else [next(found) for _ in own] for own in values]


def _uses(choice: _Choice, advantages: list[float] | None, grpo: GrpoConfig) -> list[TrainingUse]:
    rewards, silent = choice.rewards, ""
    if advantages is None:
        silent = _silent_reason([rewards[i] for i in choice.trainable])
        advantages = [0.0] * len(choice.kept)
    of_kept = dict(zip(choice.kept, advantages, strict=True))

    def use(index: int, reward: float) -> TrainingUse:
        if index not in choice.trainable:
            fault = _fault(choice.group.members[index].episode)
            return TrainingUse(reward, None, fault or "truncated episodes are masked")
        if silent and not grpo.count_silent_groups:
            return TrainingUse(reward, None, silent)
        if index not in of_kept:
            return TrainingUse(reward, None, f"not among the {len(choice.kept)} kept of {len(rewards)}")
        return TrainingUse(reward, of_kept[index], None)

    return [use(index, reward) for index, reward in enumerate(rewards)]


def _trainable(group: Group, grpo: GrpoConfig) -> list[int]:
    """Indexes of the members that may be trained on at all."""
    return [
        index
        for index, member in enumerate(group.members)
        if not _fault(member.episode) and not (grpo.mask_truncated and member.episode.stop_reason.cut_off)
    ]


def _silent_reason(rewards: Sequence[float]) -> str:
    if len(rewards) < 2:
        return "a group of one has nothing to be compared with"
    return f"group without signal, all its rewards are {rewards[0]:.2f}"


def _fault(episode: Episode) -> str:
    """Why no gradient can come from an episode, whatever its reward."""
    if all(math.isfinite(logprob) for logprob in episode.logprobs):
        return ""
    return "the sampler reported a log-probability that is not finite"


def shuffle_rewards(rewards: Sequence[Sequence[float]], rng: random.Random) -> list[list[float]]:
    """The same rewards in the same shape, in a random order."""
    pool = [reward for group in rewards for reward in group]
    rng.shuffle(pool)
    dealt = iter(pool)
    return [[next(dealt) for _ in group] for group in rewards]
