"""Alarms: signs in the metrics that a run is going wrong, and what to do about each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from research.settings.measuring import AlarmsConfig
from services.trainer.entry import GrpoEntry, UpdateEntry

Action = Literal["warn", "stop", "rollback"]

WINDOW = 3  # steps to average where one step says little

_SEVERITY: dict[Action, int] = {"warn": 0, "rollback": 1, "stop": 2}


@dataclass(frozen=True, slots=True)
class Alarm:
    """One limit that was crossed: which, what to do now, and what to try."""

    message: str
    action: Action

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class _SignLimit:
    """A limit of one of `Signs`, with what its alarm says of the mean."""

    sign: str
    setting: str
    is_floor: bool
    seen: str
    advice: str


_SIGN_LIMITS = (
    _SignLimit(
        "repetition",
        "repetition_ceiling",
        False,
        "of the runs of four words in an episode, {share} were in it before",
        "the model repeats itself; lower optimizer.learning_rate or raise grpo.kl_coefficient",
    ),
    _SignLimit(
        "empty_thoughts",
        "empty_thoughts_ceiling",
        False,
        "{share} of the turns think less than three words",
        "the model gives up its thoughts; lower optimizer.learning_rate or raise grpo.kl_coefficient or sft.steps",
    ),
    _SignLimit(
        "unanswered",
        "unanswered_ceiling",
        False,
        "{share} of the episodes ended without an answer, though nothing cut them off",
        "the model avoids answers; make that cost, as reward.terms = {f1_penalized = 1} does",
    ),
    _SignLimit(
        "searched",
        "searched_floor",
        True,
        "only {share} of the episodes searched at all",
        "the model does not search; ask questions that it cannot answer by heart, raise sft.steps, or make it cost, as "
        "reward.terms = {f1_penalized = 1} does",
    ),
    _SignLimit(
        "repeated_queries",
        "repeated_queries_ceiling",
        False,
        "{share} of the searches asked what their episode had asked before",
        "the model is stuck in its searches; set turns.search_loss, or lower episode.max_searches",
    ),
)


def alarms(metrics: Sequence[GrpoEntry], settings: AlarmsConfig) -> list[Alarm]:
    """The alarms that the last step sets off.

    Entropy, the share of well formed episodes and the signs are means over the last three steps (of entropy: the last
    three that had an update; of a sign: that have it) and raise no alarm before there are three; the mismatch KL counts
    at once, and a falling likelihood after as many updates that measured it as are set. A step without an update says
    nothing about these. NaN lies beyond every limit.

    Args:
        metrics: the entries of the finished steps that sampled episodes, oldest first.
    """
    if not metrics:
        return []
    fired = [_malformed(metrics, settings), *(_beyond(limit, metrics, settings) for limit in _SIGN_LIMITS)]
    if metrics[-1]["update"] is not None:
        updates = [entry["update"] for entry in metrics if entry["update"] is not None]
        fired += [_low_entropy(updates, settings), _mismatch(updates[-1], settings), _falling(updates, settings)]
    return [alarm for alarm in fired if alarm is not None]


def strongest(fired: Sequence[Alarm]) -> Alarm | None:
    """The alarm that decides: stop outweighs rollback, which outweighs warn."""
    return max(fired, key=lambda alarm: _SEVERITY[alarm.action], default=None)


def _malformed(metrics: Sequence[GrpoEntry], settings: AlarmsConfig) -> Alarm | None:
    share, floor = _mean_of_last([entry["well_formed"] for entry in metrics]), settings.well_formed_floor
    if floor is None or share is None or share >= floor:
        return None
    return Alarm(
        f"only {share:.3f} of the episodes of {WINDOW} steps are well formed (alarms.well_formed_floor = {floor:g}): "
        "the model is forgetting the format; lower optimizer.learning_rate or raise grpo.kl_coefficient or sft.steps",
        settings.on_malformed,
    )


def _low_entropy(updates: Sequence[UpdateEntry], settings: AlarmsConfig) -> Alarm | None:
    entropy, floor = _mean_of_last([update["entropy"] for update in updates]), settings.entropy_floor
    if floor is None or entropy is None or entropy >= floor:
        return None
    return Alarm(
        f"the mean entropy of {WINDOW} steps is {entropy:.4f} nats per token (alarms.entropy_floor = {floor:g}): the "
        "model has stopped exploring; raise grpo.entropy_coefficient or grpo.clip_high, or ask harder questions",
        settings.on_low_entropy,
    )


def _mismatch(update: UpdateEntry, settings: AlarmsConfig) -> Alarm | None:
    kl, ceiling = update["mismatch_kl"], settings.mismatch_kl_ceiling
    if ceiling is None or kl <= ceiling:
        return None
    return Alarm(
        f"sampler and learner are {kl:.4f} nats per token apart (alarms.mismatch_kl_ceiling = {ceiling:g}): they "
        "should be one policy; check whether weights, model.dtype and episode.temperature are the same on both sides",
        settings.on_mismatch,
    )


def _falling(updates: Sequence[UpdateEntry], settings: AlarmsConfig) -> Alarm | None:
    count = settings.likelihood_falls
    if count is None or "right_before" not in updates[-1]:
        return None
    changes = [update["right_after"] - update["right_before"] for update in updates if "right_before" in update]
    if len(changes) < count or any(change >= 0 for change in changes[-count:]):
        return None
    return Alarm(
        f"right episodes were less likely after each of the last {count} updates than before it, by "
        f"{-sum(changes[-count:]):.4f} nats per token in all (alarms.likelihood_falls = {count}): wrong ones that "
        "resemble them pull them down, which ends in collapse; lower optimizer.learning_rate, or raise "
        "grpo.questions_per_step or grpo.kl_coefficient",
        settings.on_collapse,
    )


def _beyond(limit: _SignLimit, metrics: Sequence[GrpoEntry], settings: AlarmsConfig) -> Alarm | None:
    bound: float | None = getattr(settings, limit.setting)
    if bound is None or limit.sign not in metrics[-1]:
        return None
    known: list[Mapping[str, Any]] = [entry for entry in metrics if limit.sign in entry]
    share = _mean_of_last([entry[limit.sign] for entry in known])
    if share is None or (share >= bound if limit.is_floor else share <= bound):
        return None
    seen = limit.seen.format(share=f"{share:.3f}")
    return Alarm(
        f"in {WINDOW} steps, {seen} (alarms.{limit.setting} = {bound:g}): {limit.advice}", settings.on_collapse
    )


def _mean_of_last(values: Sequence[float]) -> float | None:
    return sum(values[-WINDOW:]) / WINDOW if len(values) >= WINDOW else None
