"""Rewards to advantages: which episodes of a step are trained on, with what advantage, and why others are not.

What counts where (docs/adr/063):

- An advantage compares an episode with those of its group that are trained on (or of the batch, by `grpo.advantage`),
  so that the advantages of what is trained sum to zero. Episodes left out (truncated ones that are masked, those not
  among the kept) have none.
- Episodes that branched from another are compared within their tree as well. Tokens that they share with it are trained
  on in each of them, as in the paper: with the sum of their advantages (docs/adr/087).
- The tokens of a turn may have another advantage than their episode's (`[turns]`); a group whose rewards are equal, but
  not what its turns brought, is trained on.
- Episodes left out are in no denominator of the loss.
- Groups without signal (if the batch is compared, a batch without) are left out too, unless `grpo.count_silent_groups`;
  then they are trained on with advantage 0: they count in the denominators and get the KL and entropy terms, as in verl
  and TRL.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from research.episode.agent import Episode
from research.scoring.turns import is_void, turn_credits
from research.settings import Settings
from research.settings.credit import TurnsConfig
from research.settings.training import GrpoConfig
from services.trainer.groups import Group, TrainingUse
from services.trainer.learner.credit import token_advantages, turn_advantages
from services.trainer.learner.estimators import (
    batch_advantages,
    group_advantages,
    keep_most_varied,
    leave_one_out_advantages,
    tree_advantages,
)
from services.trainer.model.batching import TrainingSequence, sequence_of

_NO_CREDIT = TurnsConfig()


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The sequences of one update, and for every group what became of each of its episodes.

    `zero_signal_groups` counts the groups whose trained episodes have equal rewards, so that their answers carry none.
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


def compute_advantages(
    groups: Sequence[Group], rewards: Sequence[Sequence[float]], grpo: GrpoConfig, turns: TurnsConfig = _NO_CREDIT
) -> TrainingBatch:
    """Choose what is trained on and compute its advantages."""
    choices = [_choose(group, own, grpo, turns) for group, own in zip(groups, rewards, strict=True)]
    batch = TrainingBatch([], [], sum(choice.is_silent for choice in choices))
    for choice, advantages in zip(choices, _of_kept(choices, grpo), strict=True):
        uses = _uses(choice, advantages, grpo, _of_turns(choice, turns))
        batch.group_uses.append(uses)
        for member, use in zip(choice.group.members, uses, strict=True):
            if use.skip_reason is None and use.advantage is not None:
                own = _of_tokens(member.episode, use.advantage, use)
                right = member.score.em == 1 and sum(own) > 0
                batch.sequences.append(sequence_of(member.episode, own, right=right))
    return batch


def _of_tokens(episode: Episode, advantage: float, use: TrainingUse) -> list[float]:
    if use.turn_advantages is None:
        return [advantage] * episode.sampled_tokens
    return token_advantages(episode.sampled, advantage, use.turn_advantages)


def has_signal(group: Group, grpo: GrpoConfig, turns: TurnsConfig = _NO_CREDIT) -> bool:
    """Whether the episodes of a group that may be trained on earned different rewards, or their turns credit."""
    choice = _choose(group, group.rewards, grpo, turns)
    credits = (_of_turns(choice, turns) or []) if turns.credited else []
    return not choice.is_silent or any(credit for own in credits for credit in own)


@dataclass(frozen=True, slots=True)
class _Choice:
    """Of a group, the indexes of the members that may be trained on, of those that are kept, and why others may not."""

    group: Group
    rewards: Sequence[float]
    trainable: list[int]
    kept: list[int]
    left_out: dict[int, str]

    @property
    def kept_rewards(self) -> list[float]:
        return [self.rewards[i] for i in self.kept]

    @property
    def trees(self) -> list[int]:
        """Of the kept, the root of the tree that each is part of, by its place."""
        return [self.group.members[i].root for i in self.kept]

    @property
    def is_silent(self) -> bool:
        return len(set(self.kept_rewards)) < 2


def _choose(group: Group, rewards: Sequence[float], grpo: GrpoConfig, turns: TurnsConfig) -> _Choice:
    reasons = [_reason_to_leave_out(member.episode, grpo, turns) for member in group.members]
    trainable = [index for index, reason in enumerate(reasons) if not reason]
    keep = grpo.train_per_group or len(trainable)
    kept = [trainable[i] for i in keep_most_varied([rewards[i] for i in trainable], keep)]
    return _Choice(group, rewards, trainable, kept, {index: why for index, why in enumerate(reasons) if why})


def _of_kept(choices: Sequence[_Choice], grpo: GrpoConfig) -> list[list[float] | None]:
    """The advantages of the kept of each group, by `grpo.advantage`; None for a group without signal."""
    scaled = grpo.scale_advantages
    match grpo.advantage:
        case "group":
            return _over_trees(choices, partial(group_advantages, scaled=scaled))
        case "leave_one_out":
            return _over_trees(choices, partial(leave_one_out_advantages, scaled=scaled))
        case "batch":
            everything = {reward for choice in choices for reward in choice.kept_rewards}
            return _over_batch(choices, [c.kept_rewards if len(everything) > 1 else None for c in choices], scaled)
        case "group_and_batch":
            values = [group_advantages(choice.kept_rewards, scaled=False) for choice in choices]
            if grpo.count_silent_groups:
                values = [value or [0.0] * len(c.kept) for value, c in zip(values, choices, strict=True)]
            return _over_batch(choices, values, scaled)


def _over_trees(
    choices: Sequence[_Choice], of_group: Callable[[Sequence[float]], list[float] | None]
) -> list[list[float] | None]:
    return [tree_advantages(choice.kept_rewards, choice.trees, of_group) for choice in choices]


def _over_batch(
    choices: Sequence[_Choice], values: Sequence[list[float] | None], scaled: bool
) -> list[list[float] | None]:
    counted = [(choice, own) for choice, own in zip(choices, values, strict=True) if own is not None]
    lengths = [choice.group.members[i].episode.sampled_tokens for choice, _ in counted for i in choice.kept]
    found = iter(batch_advantages([value for _, own in counted for value in own], lengths, scaled=scaled))
    return [None if own is None else [next(found) for _ in own] for own in values]


def _of_turns(choice: _Choice, turns: TurnsConfig) -> list[list[float | None]] | None:
    """What the turns of the kept members get beside their episode's advantage; None if turns are nothing special."""
    if not turns.credited and turns.void != "mask_turn":
        return None
    episodes = [choice.group.members[i].episode for i in choice.kept]
    advantages = turn_advantages([turn_credits(episode, choice.group.question, turns) for episode in episodes])
    return [
        [
            None if turns.void == "mask_turn" and is_void(episode, turn) else advantage
            for turn, advantage in zip(episode.turns, own, strict=True)
        ]
        for episode, own in zip(episodes, advantages, strict=True)
    ]


def _uses(
    choice: _Choice,
    advantages: list[float] | None,
    grpo: GrpoConfig,
    of_turns: list[list[float | None]] | None,
) -> list[TrainingUse]:
    rewards, silent = choice.rewards, ""
    if advantages is None:
        advantages = [0.0] * len(choice.kept)
        if not any(any(own) for own in of_turns or []):
            silent = _silent_reason([rewards[i] for i in choice.trainable])
    of_kept = dict(zip(choice.kept, advantages, strict=True))
    turns_of_kept = dict(zip(choice.kept, of_turns, strict=True)) if of_turns is not None else {}

    def use(index: int, reward: float) -> TrainingUse:
        if index in choice.left_out:
            return TrainingUse(reward, None, choice.left_out[index])
        if silent and not grpo.count_silent_groups:
            return TrainingUse(reward, None, silent)
        if index not in of_kept:
            return TrainingUse(reward, None, f"not among the {len(choice.kept)} kept of {len(rewards)}")
        return TrainingUse(reward, of_kept[index], None, turns_of_kept.get(index))

    return [use(index, reward) for index, reward in enumerate(rewards)]


def _silent_reason(rewards: Sequence[float]) -> str:
    if len(rewards) < 2:
        return "a group of one has nothing to be compared with"
    return f"group without signal, all its rewards are {rewards[0]:.2f}"


def _reason_to_leave_out(episode: Episode, grpo: GrpoConfig, turns: TurnsConfig) -> str:
    """Why an episode is not trained on, whatever its reward; empty if it may be."""
    if not math.isfinite(sum(episode.logprobs)):
        return "the sampler reported a log-probability that is not finite"
    if grpo.mask_truncated and episode.stop_reason.cut_off:
        return "truncated episodes are masked"
    if turns.void == "mask_episode" and any(is_void(episode, turn) for turn in episode.turns):
        return "episodes with a void turn are masked"
    return ""


def shuffle_rewards(rewards: Sequence[Sequence[float]], rng: random.Random) -> list[list[float]]:
    """The same rewards in the same shape, in a random order."""
    pool = [reward for group in rewards for reward in group]
    rng.shuffle(pool)
    dealt = iter(pool)
    return [[next(dealt) for _ in group] for group in rewards]
