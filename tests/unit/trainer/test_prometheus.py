"""What Prometheus is shown of a step, with and without what older runs lack."""

from __future__ import annotations

from services.trainer.api.prometheus import render_metrics
from services.trainer.entry import Entry
from services.trainer.status import RunStatus
from services.trainer.telemetry.metrics import step_metrics
from tests.support.scored import ROLLOUT, group


def entry() -> Entry:
    groups = [group("1.0", ["Paris", "Lyon"], searches=2)]
    return step_metrics(1, 2, groups, silent=0, infra_errors=0, rollout=ROLLOUT, update=None)


def shown(step: Entry) -> dict[str, float]:
    lines = render_metrics(RunStatus("demo", 8), [step]).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_signs_and_the_likelihood_of_right_episodes_are_gauges() -> None:
    step = entry()
    step["update"] = {"loss": 0.5, "learning_rate": 1e-6, "right_before": -0.5, "right_after": -0.25}
    gauges = shown(step)
    assert gauges["research_trainer_step_searched"] == 1
    assert gauges["research_trainer_step_repeated_queries"] == 0
    assert gauges["research_trainer_update_right_after"] == -0.25
    assert "research_trainer_step_found" not in gauges  # the question names no supporting passage


def test_a_step_of_a_run_from_before_them_is_shown_without() -> None:
    step = entry()
    former: Entry = {name: value for name, value in step.items() if name not in ("searched", "repetition")}  # type: ignore[assignment]
    assert shown(step).keys() - shown(former).keys() == {
        "research_trainer_step_searched",
        "research_trainer_step_repetition",
    }
