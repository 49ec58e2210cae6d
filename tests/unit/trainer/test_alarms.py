"""When alarms go off, and when they hold their tongue."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

from research.settings.measuring import AlarmsConfig
from services.trainer.telemetry.alarms import Alarm, alarms, strongest

OFF = {
    name: None
    for name, field in AlarmsConfig.model_fields.items()
    if field.annotation is not None and type(None) in get_args(field.annotation)
}


def limits(**given: Any) -> AlarmsConfig:
    """Only these limits."""
    return AlarmsConfig(**(OFF | given))


def step(entropy: float = 1.0, well_formed: float = 1.0, mismatch_kl: float = 0.0) -> Any:
    """What alarms read of an entry."""
    return {"well_formed": well_formed, "update": {"entropy": entropy, "mismatch_kl": mismatch_kl}}


def no_update(well_formed: float = 1.0) -> Any:
    return {"well_formed": well_formed, "update": None}


ALL = limits(entropy_floor=0.1, well_formed_floor=0.5, mismatch_kl_ceiling=0.05)


def test_nothing_fires_before_the_first_step_or_without_limits() -> None:
    assert alarms([], ALL) == []
    assert alarms([step(0.0, 0.0, math.inf)] * 3, limits()) == []


def test_a_mean_on_the_limit_is_still_good() -> None:
    on_the_limit = limits(entropy_floor=0.25, well_formed_floor=0.5, mismatch_kl_ceiling=0.05)
    assert alarms([step(0.25, 0.5, 0.05)] * 3, on_the_limit) == []


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([step(entropy=0.2), step(entropy=0.05), step(entropy=0.02)], "entropy of 3 steps is 0.0900"),
        ([step(well_formed=w) for w in (0.9, 0.3, 0.0)], "only 0.400 of the episodes"),
        ([step(mismatch_kl=0.06)], "0.0600 nats per token apart (alarms.mismatch_kl_ceiling = 0.05)"),
    ],
)
def test_each_limit_by_itself(steps: list[Any], words: str) -> None:
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
    actions = {"on_low_entropy": "rollback", "on_malformed": "warn", "on_mismatch": "stop"}
    fired = alarms([step(0.0, 0.0, 1.0)] * 3, ALL.model_copy(update=actions))
    assert [alarm.action for alarm in fired] == ["warn", "rollback", "stop"]
    decided = [strongest(fired), strongest(fired[:2]), strongest(fired[:1]), strongest([])]
    assert [alarm.action if isinstance(alarm, Alarm) else None for alarm in decided] == [
        "stop",
        "rollback",
        "warn",
        None,
    ]


def signs(**values: float) -> Any:
    return no_update() | values


@pytest.mark.parametrize(
    ("setting", "sign", "good", "bad", "words"),
    [
        ("repetition_ceiling", "repetition", 0.4, 0.6, "of the runs of four words in an episode, 0.600 were"),
        ("empty_thoughts_ceiling", "empty_thoughts", 0.4, 0.6, "0.600 of the turns think less"),
        ("unanswered_ceiling", "unanswered", 0.4, 0.6, "0.600 of the episodes ended without an answer"),
        ("searched_floor", "searched", 0.6, 0.4, "only 0.400 of the episodes searched"),
        ("repeated_queries_ceiling", "repeated_queries", 0.4, 0.6, "0.600 of the searches asked what"),
    ],
)
def test_each_sign_has_a_limit_on_one_side(setting: str, sign: str, good: float, bad: float, words: str) -> None:
    own = limits(**{setting: 0.5, "on_collapse": "stop"})
    (alarm,) = alarms([signs(**{sign: bad})] * 3, own)
    assert words in str(alarm)
    assert f"(alarms.{setting} = 0.5): the model" in str(alarm)
    assert alarm.action == "stop"
    assert len(alarms([signs(**{sign: math.nan})] * 3, own)) == 1
    for steps in ([signs(**{sign: good})] * 3, [signs(**{sign: 0.5})] * 3, [signs(**{sign: bad})] * 2):
        assert alarms(steps, own) == []


def test_a_sign_looks_past_steps_without_it() -> None:
    """A run of before has none, and a step without a search has no share of repeated queries."""
    stuck, none = signs(repeated_queries=0.9), no_update()
    own = limits(repeated_queries_ceiling=0.5)
    assert alarms([none] * 5, own) == []
    assert len(alarms([none, stuck, none, stuck, none, stuck], own)) == 1
    assert alarms([stuck, stuck, stuck, none], own) == []  # said already, and nothing new is known


def change(by: float) -> Any:
    entry = step()
    return entry | {"update": entry["update"] | {"right_before": -0.5, "right_after": -0.5 + by, "right_episodes": 4}}


def test_right_episodes_that_fall_update_after_update_are_told() -> None:
    own = limits(likelihood_falls=3)
    (alarm,) = alarms([change(0.5), *[change(-0.25)] * 3], own)
    assert "each of the last 3 updates than before it, by 0.7500 nats per token in all" in str(alarm)
    assert len(alarms([change(-0.25), change(-0.25), step(), no_update(), change(-0.25)], own)) == 1
    assert len(alarms([change(math.nan)] * 3, own)) == 1


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([change(-0.25)] * 2, id="too few"),
        pytest.param([change(-0.25), change(-0.25), change(0.0)], id="the last did not fall"),
        pytest.param([change(-0.25), change(0.25), change(-0.25)], id="one of them rose"),
        pytest.param([*[change(-0.25)] * 3, step()], id="said already, and the last measured nothing"),
        pytest.param([*[change(-0.25)] * 3, no_update()], id="said already, and the last made no update"),
        pytest.param([step()] * 3, id="never measured"),
    ],
)
def test_a_likelihood_that_does_not_keep_falling_is_no_alarm(steps: list[Any]) -> None:
    assert alarms(steps, limits(likelihood_falls=3)) == []


def test_a_usual_run_passes_the_limits_that_are_set_by_default() -> None:
    """The demo's second step, as it was recorded."""
    usual = signs(repetition=0.054, empty_thoughts=0.0, unanswered=0.008, searched=0.984, repeated_queries=0.017)
    assert alarms([usual] * 9, AlarmsConfig()) == []
