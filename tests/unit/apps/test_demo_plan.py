"""The demo fits its size to the machine, and a run ends when its minutes are up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.demo_plan import fit
from research.config import load_settings
from services.trainer.run_dir.size import with_written_size, write_size
from services.trainer.status import RunPhase, RunStatus
from services.trainer.telemetry.forecast import Speeds, forecast, minutes, seconds_left

SETTINGS = load_settings()


def test_a_fast_machine_gets_all_of_it() -> None:
    fitted, seconds = fit(SETTINGS, Speeds(learner=3000.0, policy=3000.0), left=1000)
    assert fitted is SETTINGS
    assert seconds < 1000


@pytest.mark.parametrize("speed", [400, 300, 200, 150, 100])
def test_a_slow_machine_gets_what_ends_in_time(speed: float) -> None:
    speeds = Speeds(learner=speed, policy=speed)
    fitted, seconds = fit(SETTINGS, speeds, left=900)
    whole = forecast(SETTINGS, speeds)
    assert whole is not None
    assert seconds <= whole
    assert seconds <= 900 or fitted.grpo.steps == 2
    assert fitted.grpo.steps >= 1
    assert fitted.grpo.questions_per_step >= 1
    assert isinstance(fitted.evaluation.per_kind, dict)
    assert all(count >= 1 for count in fitted.evaluation.per_kind.values())
    assert fitted.grpo.group_size == SETTINGS.grpo.group_size


def test_rounds_of_a_refill_take_time() -> None:
    speeds = Speeds(learner=300.0, policy=300.0)
    refilled = load_settings(overrides=["grpo.refill_rounds=2"])
    once, more = forecast(SETTINGS, speeds), forecast(refilled, speeds)
    assert once is not None
    assert more is not None
    # Of ten groups four are silent: 1 + .4 + .16 as many are sampled and trained on.
    steps = once - (forecast(load_settings(overrides=["grpo.steps=0"]), speeds) or 0.0)
    assert once + 0.4 * steps < more < once + 0.56 * steps


def test_the_least_still_shows_a_before_and_an_after() -> None:
    fitted, _ = fit(SETTINGS, Speeds(learner=1.0, policy=1.0), left=60)
    assert fitted.grpo.steps == 2
    assert fitted.evaluation.per_kind == {"one_hop": 16, "two_hop": 16}


def test_whoever_goes_on_with_a_fitted_run_keeps_its_size(tmp_path: Path) -> None:
    settings = load_settings(overrides=[f"paths.runs={tmp_path}"])
    assert with_written_size(settings) is settings
    fitted, _ = fit(settings, Speeds(learner=150.0, policy=150.0), left=900)
    assert fitted.grpo.questions_per_step < settings.grpo.questions_per_step
    write_size(fitted)
    found = with_written_size(settings)
    assert (found.grpo, found.evaluation) == (fitted.grpo, fitted.evaluation)
    assert found.optimizer == settings.optimizer
    (settings.run_dir / "size.json").write_text("{ half")
    assert with_written_size(settings) is settings


def test_other_models_have_no_forecast() -> None:
    other = load_settings(overrides=["model.name=some/other"])
    assert forecast(other, Speeds(100.0, 100.0)) is None


def test_a_run_under_way_is_foreseen_by_its_last_steps() -> None:
    metrics: Any = [{"seconds": {"rollout": s}} for s in (100.0, 10.0, 10.0, 10.0)]
    assert seconds_left(SETTINGS, metrics, {"evaluation": 40.0}) == pytest.approx(4 * 10 + 20)


def test_time_left_passes_only_while_the_run_runs() -> None:
    status = RunStatus("demo", 8)
    status.forecast(120.0)
    assert status.seconds_left == 120.0
    status.enter(RunPhase.ROLLOUT)
    status.forecast_at -= 60
    assert status.seconds_left == pytest.approx(60.0, abs=1)
    status.forecast_at -= 600
    assert status.seconds_left == 0.0
    status.enter(RunPhase.FINISHED)
    assert status.seconds_left is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(5, "about 1 minute"), (89, "about 1 minute"), (600, "about 10 minutes")]
)
def test_minutes_as_people_say_them(seconds: float, said: str) -> None:
    assert minutes(seconds) == said
