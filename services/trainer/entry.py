"""The entry of a training step in `metrics.jsonl`, as it is written and as every reader receives it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict, cast, final

from typing_extensions import TypeIs

from research.scoring.signs import Signs


class Means(Signs):
    """Means over episodes: of a step, or of one kind of question. `sampled_tokens` counts what the model wrote,
    without what branches copied.

    `rewards` are those of the terms of the reward, unweighted, as `[reward]` names them. The signs are there since
    2026-12, each only where there is something to take it of.
    """

    episodes: int
    reward: float
    em: float
    f1: float
    well_formed: float
    truncated: float
    searches: float
    sampled_tokens: float
    corrected: float
    rewards: NotRequired[dict[str, float]]


class UpdateEntry(TypedDict):
    """What an update did. A supervised step has only the first two. KL and entropy are in nats per token.

    `right_before` and `right_after` are the mean log-probability of the tokens of right episodes before and after it,
    in nats, of `right_episodes`; absent if there were none, and in runs from before 2026-12.
    """

    loss: float
    learning_rate: float
    policy_loss: NotRequired[float]
    kl: NotRequired[float]
    entropy: NotRequired[float]
    clipped_share: NotRequired[float]
    grad_norm: NotRequired[float]
    tokens: NotRequired[int]
    mismatch_mean: NotRequired[float]
    mismatch_max: NotRequired[float]
    mismatch_kl: NotRequired[float]
    masked_share: NotRequired[float]
    right_before: NotRequired[float]
    right_after: NotRequired[float]
    right_episodes: NotRequired[int]


class StepEntry(TypedDict):
    """What every step has; `update` is None if there was none, `seconds` are per phase."""

    step: int
    version: int
    update: UpdateEntry | None
    seconds: dict[str, float]


class RolloutEntry(TypedDict):
    """How the groups of a step came about.

    `signal_before` and `signal_after` count the groups with signal, per question of a step, before and after silent
    ones were replaced, in `refill_rounds` rounds. `unusable` are the ids of questions, once for each episode that was
    left out because something in it could not be encoded.

    `staleness` is, as a mean over episodes, of how many updates the learner was ahead of the oldest weights that wrote
    one, `several_versions` the share that more than one version wrote; `dropped_groups` were too old to train on.

    `branches` counts the episodes that went on from another, `copied_tokens` the sampled tokens that they copied; it is
    a mean over all episodes.
    """

    refill_rounds: int
    signal_before: float
    signal_after: float
    unusable: list[str]
    dropped_groups: NotRequired[int]
    staleness: NotRequired[float]
    staleness_max: NotRequired[int]
    several_versions: NotRequired[float]
    branches: NotRequired[int]
    copied_tokens: NotRequired[float]


@final
class GrpoEntry(StepEntry, Means):
    """A step that sampled episodes.

    `solved_groups` is the share of groups with at least one exact match (pass@k of the policy before the update, on
    this step's questions); `silent_groups` counts groups of equal rewards.
    """

    solved_groups: float
    by_kind: dict[str, Means]
    stop_reasons: dict[str, int]
    silent_groups: int
    infra_errors: int
    infra_share: float
    rollout: NotRequired[RolloutEntry]  # since 2026-11


@final
class SupervisedEntry(StepEntry):
    """A step of the ablation `supervised`, which samples no episode."""

    supervised_steps: int


Entry = GrpoEntry | SupervisedEntry


def is_grpo(entry: Entry) -> TypeIs[GrpoEntry]:
    """Whether a step sampled episodes."""
    return "reward" in entry


def grpo_entries(entries: Iterable[Entry]) -> list[GrpoEntry]:
    """The entries of steps that sampled episodes."""
    return [entry for entry in entries if is_grpo(entry)]


def entry_from_json(record: dict[str, Any]) -> Entry:
    """A line of `metrics.jsonl`, typed but not validated, since only this project writes the file."""
    return cast(Entry, record)
