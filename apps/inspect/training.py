"""What a training step made of the episodes of a group, recomputed from their rewards as the loop does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from research.episode.agent import Episode
from services.trainer.learner.loss import group_advantages, keep_extremes


@dataclass(frozen=True, slots=True)
class TrainingRules:
    """Who of a step is trained on and how: settings of `[grpo]`, and whether it updated at all."""

    train_per_group: int | None
    mask_truncated: bool
    scale_advantages: bool
    updated: bool


@dataclass(frozen=True, slots=True)
class TrainingUse:
    """The advantage of an episode (None: its group has none), and why it was not trained on (None: it was).

    `rewards` are those of its group that the advantage was computed from; in a control run that deals rewards out at
    random they are not what the episodes earned.
    """

    advantage: float | None
    skip_reason: str | None
    rewards: tuple[float, ...]


def training_of_group(
    rewards: Sequence[float], episodes: Sequence[Episode], rules: TrainingRules, *, complete: bool
) -> list[TrainingUse]:
    """One entry an episode, in order.

    Args:
        rewards: what the advantages were computed from, one an episode.
        complete: whether this is the whole group; if not, no advantage can be told.
    """
    advantages = group_advantages(rewards, scaled=rules.scale_advantages) if complete else None
    if not complete:
        why = "unknown: the file was cut off"
    elif len(rewards) < 2:
        why = "a group of one has nothing to be compared with"
    else:
        why = f"group without signal, all its rewards are {rewards[0]:.2f}"
    if advantages is None:
        return [TrainingUse(None, why, tuple(rewards)) for _ in rewards]
    kept = keep_extremes(rewards, rules.train_per_group or len(rewards))

    def skip_reason(index: int) -> str | None:
        if index not in kept:
            return f"not among the {len(kept)} kept of {len(rewards)}"
        if rules.mask_truncated and episodes[index].stop_reason.truncated:
            return "truncated episodes are masked"
        return None if rules.updated else "the step made no update"

    return [TrainingUse(advantage, skip_reason(i), tuple(rewards)) for i, advantage in enumerate(advantages)]
