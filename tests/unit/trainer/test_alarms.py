"""When alarms go off, and when they hold their tongue."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from services.trainer.telemetry.alarms import Action, Alarm, alarms, strongest


@dataclass(frozen=True)
class Limits:
    entropy_floor: float | None = None
    on_low_entropy: Action = "warn"
    well_formed_floor: float | None = None
    on_malformed: Action = "warn"
    mismatch_kl_ceiling: float | None = None
    on_mismatch: Action = "warn"


def step(entropy: float = 1.0, well_formed: float = 1.0, mismatch_kl: float = 0.0) -> dict[str, Any]:
    return {"well_formed": well_formed, "update": {"entropy": entropy, "mismatch_kl": mismatch_kl}}


def no_update(well_formed: float = 1.0) -> dict[str, Any]:
    return {"well_formed": well_formed, "update": None}


ALL = Limits(entropy_floor=0.1, well_formed_floor=0.5, mismatch_kl_ceiling=0.05)


def test_nothing_fires_before_the_first_step_or_without_limits() -> None:
    assert alarms([], ALL) == []
    assert alarms([step(0.0, 0.0, math.inf)] * 3, Limits()) == []


def test_a_mean_on_the_limit_is_still_good() -> None:
    limits = Limits(entropy_floor=0.25, well_formed_floor=0.5, mismatch_kl_ceiling=0.05)
    assert alarms([step(0.25, 0.5, 0.05)] * 3, limits) == []


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([step(entropy=0.2), step(entropy=0.05), step(entropy=0.02)], "entropy of 3 steps is 0.0900"),
        ([step(well_formed=w) for w in (0.9, 0.3, 0.0)], "only 0.400 of the episodes"),
        ([step(mismatch_kl=0.06)], "0.0600 nats per token apart (alarms.mismatch_kl_ceiling = 0.05)"),
    ],
)
def test_each_limit_by_itself(steps: list[dict[str, Any]], words: str) -> None:
    (alarm,) = alarms(steps, ALL)
    assert words in str(alarm)


def test_one_or_two_bad_steps_are_no_alarm_but_mismatch_is_at_once() -> None:
    assert alarms([step(entropy=0.0, well_formed=0.0)] * 2, ALL) == []
    assert len(alarms([step(mismatch_kl=1.0)], ALL)) == 1


def test_only_the_last_three_steps_count() -> None:
    assert alarms([step(entropy=0.0, well_formed=0.0)] * 9 + [step()] * 3, ALL) == []
    assert alarms([step(mismatch_kl=1.0), step()], ALL) == []
    assert len(alarms([step()] * 9 + [step(entropy=0.0, well_formed=0.0)] * 3, ALL)) == 2


def test_entropy_looks_past_steps_without_an_update() -> None:
    """A model that collapses gives silent groups, so updates become rare just when the alarm is needed."""
    low, silent = step(entropy=0.01), no_update()
    assert len(alarms([low, silent, low, silent, silent, low], ALL)) == 1
    assert alarms([low, low, low, silent], ALL) == []  # said already, and nothing new is known
    assert len(alarms([no_update(0.1)] * 3, ALL)) == 1  # the format needs no update


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_beyond_the_limit(value: float) -> None:
    if value > 0:
        assert len(alarms([step(mismatch_kl=value)], ALL)) == 1
    else:
        assert len(alarms([step(), step(), step(entropy=value)], ALL)) == 1
    if math.isnan(value):
        assert len(alarms([step(mismatch_kl=value)], ALL)) == 1


def test_opposite_infinities_are_no_reason_to_fall_over() -> None:
    assert len(alarms([step(entropy=math.inf), step(entropy=-math.inf), step()], ALL)) == 1


def test_the_action_is_that_of_the_limit_and_the_strongest_decides() -> None:
    limits = Limits(0.1, "rollback", 0.5, "warn", 0.05, "stop")
    fired = alarms([step(0.0, 0.0, 1.0)] * 3, limits)
    assert [alarm.action for alarm in fired] == ["warn", "rollback", "stop"]
    decided = [strongest(fired), strongest(fired[:2]), strongest(fired[:1]), strongest([])]
    assert [alarm.action if isinstance(alarm, Alarm) else None for alarm in decided] == [
        "stop",
        "rollback",
        "warn",
        None,
    ]
