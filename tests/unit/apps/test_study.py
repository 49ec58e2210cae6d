"""The study's plan on disk, and its report from files alone; the runs themselves are other tests' matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.study.collect import collect, em_difference, em_estimate
from apps.study.plan import PlannedRun, StudyPlan, training_seconds
from apps.study.report import write_study_report
from apps.study.view import sparkline, time_left
from research.atomic_io import write_json
from research.errors import ConfigurationError
from research.questions import Question
from research.scoring.evaluate import Answered, KindFigures
from research.scoring.reward import score
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.telemetry.metrics import step_metrics, supervised_metrics
from tests.support.scored import GOLD, ROLLOUT, answered, group

SEEDS = (1, 2)

GROUPS = [group("1", ["Paris", "Rome"])]


@pytest.fixture
def plan(tmp_path: Path) -> StudyPlan:
    return StudyPlan.load("study-cpu", [f"paths.runs={tmp_path}", "study.seeds=[1,2]", "grpo.steps=2"])


def test_every_seed_of_the_first_arm_comes_before_the_controls(plan: StudyPlan) -> None:
    names = [run.name for run in plan.runs]
    assert names[:4] == ["seed-1-start", "seed-1-grpo", "seed-2-start", "seed-2-grpo"]
    assert names[4:] == [f"seed-{s}-{arm}" for arm in ("shuffled_rewards", "supervised") for s in SEEDS]


def test_each_arm_has_its_own_settings(plan: StudyPlan) -> None:
    finish(plan, PlannedRun(1, "grpo"), em=0.5)
    start, grpo, shuffled, supervised = (
        plan.settings_of(PlannedRun(1, arm)) for arm in ("start", "grpo", "shuffled_rewards", "supervised")
    )
    assert (start.grpo.steps, grpo.grpo.steps, start.ablation.kind, grpo.ablation.kind) == (0, 2, "none", "none")
    assert shuffled.ablation.kind == "shuffled_rewards"
    assert (supervised.ablation.kind, supervised.ablation.seconds) == ("supervised", 60.0)
    assert {s.seed for s in (start, grpo, shuffled, supervised)} == {1}
    assert shuffled.run_dir == plan.directory / "seed-1-shuffled_rewards"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sft.enabled=false"], "supervised.*sft.enabled"),
        (["study.arms=['supervised']"], "name .grpo. before it"),
        (["ablation.kind=supervised"], "ablation.kind"),
        (["study.seeds=[]"], r"study\.seeds"),
    ],
)
def test_a_study_that_cannot_compare_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        StudyPlan.load("study-cpu", overrides)


def test_an_arm_begins_with_the_weights_and_evaluations_of_its_start(plan: StudyPlan) -> None:
    start = PlannedRun(1, "start")
    finish(plan, start, em=0.25)
    checkpoint = plan.record(start).checkpoints_dir / "step-000000"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    arm = PlannedRun(1, "grpo")
    plan.begin(arm)
    record = plan.record(arm)
    assert (record.checkpoints_dir / "step-000000" / "state.json").read_text() == "{}"
    assert record.answers("before")
    assert record.answers("sft")
    (record.directory / "mark").touch()
    plan.begin(arm)
    assert (record.directory / "mark").exists(), "a run that has begun is left alone"
    plan.begin(PlannedRun(2, "start"))
    other = plan.record(PlannedRun(2, "start"))
    assert other.answers("before")
    assert not other.answers("sft"), "only the untouched model is the same for every seed"


def test_checkpoints_go_once_nothing_needs_them(plan: StudyPlan) -> None:
    runs = [run for run in plan.runs if run.seed == 1]
    for run in runs:
        (plan.record(run).checkpoints_dir / "step-000000").mkdir(parents=True)
    for run in runs[:-1]:
        finish(plan, run, em=0.5)
    plan.tidy()
    kept = [run.arm for run in runs if plan.record(run).checkpoints_dir.exists()]
    assert kept == ["start", "supervised"]
    finish(plan, runs[-1], em=0.5)
    plan.tidy()
    assert not any(plan.record(run).checkpoints_dir.exists() for run in runs)


def test_the_report_is_made_from_the_files_alone(plan: StudyPlan) -> None:
    for seed in SEEDS:
        finish(plan, PlannedRun(seed, "start"), em=0.25)
        finish(plan, PlannedRun(seed, "grpo"), em=0.75)
    finish(plan, PlannedRun(1, "supervised"), em=0.5)
    path = write_study_report(plan)
    text = path.read_text()
    assert "5 of 8 runs are finished (missing: seed-1-shuffled_rewards" in text
    row = next(line for line in text.splitlines() if line.startswith("| multi-hop |"))
    assert "**0.250**" in row
    assert "**0.750**" in row
    assert "(0.75, 0.75)" in row
    data = collect(plan)
    estimate = em_estimate(data.of("grpo", "one-hop"))
    assert estimate is not None
    assert (estimate.mean, estimate.n) == (0.75, 8)
    assert estimate.low < 0.75 < estimate.high
    against_control = em_difference(data.of("grpo", "one-hop"), data.of("supervised", "one-hop"))
    assert against_control is not None
    assert against_control.mean == pytest.approx(0.25)
    assert em_estimate(data.of("shuffled_rewards", "one-hop")) is None
    assert (path.parent / "study.png").stat().st_size > 10_000
    metrics = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert [(m["arm"], m["seed"], m["step"]) for m in metrics][:2] == [("grpo", 1, 1), ("grpo", 1, 2)]
    outcomes = [json.loads(line) for line in (path.parent / "outcomes.jsonl").read_text().splitlines()]
    assert outcomes[0]["em"] == {
        **{f"{stage}/{seed}": 1 for seed in SEEDS for stage in ("untouched", "sft", "grpo")},
        "supervised/1": 1,
    }


def test_the_view_counts_and_draws() -> None:
    assert sparkline([0.0, 0.5, 1.0, 1.5]) == "▁▅██"
    steps: list[Any] = [{"seconds": {"rollout": 20.0, "update": 10.0}}] * 3
    assert time_left(steps, 5) == "00:01:00"
    assert time_left([], 5) == "…"
    assert time_left([*steps[:1]], 3601) == "30:00:00"


def finish(plan: StudyPlan, run: PlannedRun, em: float) -> None:
    """Write what a finished run leaves: eight questions a kind, of which the first `em` are right."""
    record = plan.record(run)
    record.directory.mkdir(parents=True, exist_ok=True)
    stages = {"before": em, "sft": em} if run.arm == "start" else {"after": em}
    for name, share in stages.items():
        answers, figures = [], {}
        for kind in ("one_hop", "two_hop"):
            for number in range(8):
                episode = answered(GOLD if number < 8 * share else "Rome", searches=2)
                question = Question(f"{kind}/{number}", "Q?", (GOLD,), kind=kind, entity=f"e{number // 2}")
                answers.append(Answered(question, episode, score(episode.answer, (GOLD,), None)))
            figures[kind] = KindFigures(8, share, share, share, 2.0, 1.0, 0.0, 0.0, 0)
        record.write_evaluation(name, answers, figures)
    steps = 0 if run.arm == "start" else 2
    for step in range(1, steps + 1):
        entry = (
            supervised_metrics(step, step + 1, [0.5], 1e-4)
            if run.arm == "supervised"
            else step_metrics(
                step, step + 1, [group("1", ["Paris", "Rome"])], silent=0, infra_errors=0, rollout=ROLLOUT, update=None
            )
        )
        entry["seconds"] = {"rollout": 20.0, "update": 10.0, "evaluation": 99.0}
        record.add_metrics(entry)
    write_json(record.directory / "summary.json", {"steps": steps, "seconds": {"rollout": 20.0}})
    assert steps == 0 or training_seconds(RunDirectory(record.directory)) == 60.0
