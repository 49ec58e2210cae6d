"""Alarms: signs in the metrics that a run is going wrong, and what to do about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from services.trainer.entry import GrpoEntry, UpdateEntry

Action = Literal["warn", "stop", "rollback"]

WINDOW = 3  # steps to average where one step says little

_SEVERITY: dict[Action, int] = {"warn": 0, "rollback": 1, "stop": 2}


class AlarmSettings(Protocol):
    """Limits (None: no alarm) and the action beyond each."""

    @property
    def entropy_floor(self) -> float | None: ...
    @property
    def on_low_entropy(self) -> Action: ...
    @property
    def well_formed_floor(self) -> float | None: ...
    @property
    def on_malformed(self) -> Action: ...
    @property
    def mismatch_kl_ceiling(self) -> float | None: ...
    @property
    def on_mismatch(self) -> Action: ...


@dataclass(frozen=True, slots=True)
class Alarm:
    """One limit that was crossed: which, what to do now, and what to try."""

    message: str
    action: Action

    def __str__(self) -> str:
        return self.message


def alarms(metrics: Sequence[GrpoEntry], settings: AlarmSettings) -> list[Alarm]:
    """The alarms that the last step sets off.

    Entropy and the share of well formed episodes are means over the last three steps (of entropy: the last three that
    had an update) and raise no alarm before there are three; the mismatch KL counts at once. A step without an update
    says nothing about entropy and mismatch. NaN lies beyond every limit.

    Args:
        metrics: the entries of the finished steps that sampled episodes, oldest first.
    """
    if not metrics:
        return []
    fired = [_malformed(metrics, settings)]
    if metrics[-1]["update"] is not None:
        updates = [entry["update"] for entry in metrics if entry["update"] is not None]
        fired += [_low_entropy(updates, settings), _mismatch(updates[-1], settings)]
    return [alarm for alarm in fired if alarm is not None]


def strongest(fired: Sequence[Alarm]) -> Alarm | None:
    """The alarm that decides: stop outweighs rollback, which outweighs warn."""
    return max(fired, key=lambda alarm: _SEVERITY[alarm.action], default=None)


def _malformed(metrics: Sequence[GrpoEntry], settings: AlarmSettings) -> Alarm | None:
    share, floor = _mean_of_last([entry["well_formed"] for entry in metrics]), settings.well_formed_floor
    if floor is None or share is None or share >= floor:
        return None
    return Alarm(
        f"only {share:.3f} of the episodes of {WINDOW} steps are well formed (alarms.well_formed_floor = {floor:g}): "
        "the model is forgetting the format; lower optimizer.learning_rate or raise grpo.kl_coefficient or sft.steps",
        settings.on_malformed,
    )


def _low_entropy(updates: Sequence[UpdateEntry], settings: AlarmSettings) -> Alarm | None:
    entropy, floor = _mean_of_last([update["entropy"] for update in updates]), settings.entropy_floor
    if floor is None or entropy is None or entropy >= floor:
        return None
    return Alarm(
        f"the mean entropy of {WINDOW} steps is {entropy:.4f} nats per token (alarms.entropy_floor = {floor:g}): the "
        "model has stopped exploring; raise grpo.entropy_coefficient or grpo.clip_high, or ask harder questions",
        settings.on_low_entropy,
    )


def _mismatch(update: UpdateEntry, settings: AlarmSettings) -> Alarm | None:
    kl, ceiling = update["mismatch_kl"], settings.mismatch_kl_ceiling
    if ceiling is None or kl <= ceiling:
        return None
    return Alarm(
        f"sampler and learner are {kl:.4f} nats per token apart (alarms.mismatch_kl_ceiling = {ceiling:g}): they "
        "should be one policy; check whether weights, model.dtype and episode.temperature are the same on both sides",
        settings.on_mismatch,
    )


def _mean_of_last(values: Sequence[float]) -> float | None:
    return sum(values[-WINDOW:]) / WINDOW if len(values) >= WINDOW else None
