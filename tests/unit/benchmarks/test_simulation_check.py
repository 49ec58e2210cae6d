"""Rates that are found again, and what the simulator predicts of a real run."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean

import orjson
import pytest

from benchmarks.simulation.check import calibrated, predictions, report, step_seconds
from benchmarks.simulation.machines import CPU_SERVER, cpu_machines
from benchmarks.simulation.recorded import SAMPLE, RecordedStep, read_sample, write_sample
from benchmarks.simulation.run_directory import run_steps
from benchmarks.simulation.workload import StatedShape
from research.episode.branching import branch_points
from research.errors import AssetError
from services.trainer.run_dir.run_dir import RunDirectory
from tests.support.inspected_run import HELPFUL, PARIS, USELESS, episode, group, write_run, write_step


def test_rates_of_a_known_machine_are_found_from_its_steps() -> None:
    known = cpu_machines(1.7, 0.004, 2.0)
    shape = StatedShape(80, 70, 1.4, 60, 0.2, 0.01, 448, 0.6, 8)
    chance = random.Random(1)
    steps = []
    for _ in range(4):
        step = RecordedStep(tuple(shape.groups(8, chance)), 0.0, 0.0, 2.0)
        update = 0.004 * step.computed
        steps.append(RecordedStep(step.groups, step_seconds(known, step) - update - 2.0, update, 2.0))
    found = calibrated(steps)
    assert found.server.iteration == pytest.approx(1.7 * CPU_SERVER.iteration, rel=1e-3)
    assert found.learner.token == pytest.approx(0.004)
    assert all(abs(each.error(each.given)) < 1e-3 for each in predictions(steps, seed=1))


def test_the_recorded_demo_is_predicted_within_fifteen_percent() -> None:
    """Issue 18, point 9: rates from its first four steps, the seconds of its last four for their lengths."""
    steps = read_sample(SAMPLE)
    made = predictions(steps, seed=1)
    assert [each.step for each in made] == [5, 6, 7, 8]
    assert fmean(abs(each.error(each.given)) for each in made) < 0.15
    text = report(steps, seed=1)
    assert "| 8 | 67.0 |" in text
    assert "Mean absolute error" in text


def test_predictions_do_not_know_the_seconds_that_they_predict() -> None:
    steps = read_sample(SAMPLE)
    wrong = [RecordedStep(step.groups, 1e6, 1e6, 1e6) for step in steps[4:]]
    changed = predictions([*steps[:4], *wrong], seed=1)
    assert [(each.given, each.drawn) for each in changed] == [
        (each.given, each.drawn) for each in predictions(steps, 1)
    ]


def test_a_runs_directory_becomes_lengths_and_times(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = [{"step": step, "seconds": {"rollout": 5.0, "update": 2.0, "publish": 1.0}} for step in (1, 2)]
    lines.append({"step": 3, "seconds": {"update": 2.0}})  # of the ablation that never samples
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    steps = run_steps(tmp_path / "run")
    assert [(step.seconds, len(step.groups)) for step in steps] == [(8.0, 2), (8.0, 1)]
    recorded = [each for source in run.sources() if source.step == 1 for each in run.read(source)]
    shapes = [episode for group in steps[0].groups for episode in group.episodes]
    for shape, each in zip(shapes, recorded, strict=True):
        assert shape.sampled == each.episode.sampled_tokens
        assert shape.tokens == len(each.episode.prompt_ids) + len(each.episode.token_ids)
        assert [turn.search is not None for turn in shape.turns] == [
            turn.query is not None for turn in each.episode.turns
        ]
    trained = [each for each in recorded if each.training and each.training.skip_reason is None]
    whole = sum(len(each.episode.prompt_ids) + len(each.episode.token_ids) for each in trained)
    assert 0 < steps[0].computed < whole  # what episodes begin with counts once
    assert not steps[0].groups[1].signal
    assert steps[1].computed == 0  # no update was made of it
    write_sample(steps, tmp_path / "sample.json.gz")
    assert read_sample(tmp_path / "sample.json.gz") == steps


def test_what_a_branch_copied_is_prompt(tmp_path: Path) -> None:
    root, grown = episode("Paris", USELESS, HELPFUL), episode("Lyon", USELESS, HELPFUL)
    grown.branched_from = branch_points(root, 0)[0]
    write_step(RunDirectory(tmp_path), 1, [group("1.0", PARIS, root, grown)])
    line = {"step": 1, "seconds": {"rollout": 5.0, "update": 2.0, "publish": 1.0}}
    (tmp_path / "metrics.jsonl").write_bytes(orjson.dumps(line) + b"\n")
    whole, rest = run_steps(tmp_path)[0].groups[0].episodes
    assert rest.sampled == grown.sampled_tokens - grown.copied_tokens < whole.sampled
    assert rest.tokens == len(grown.prompt_ids) + len(grown.token_ids)
    assert [turn.search is not None for turn in whole.turns] == [True, True, False]
    assert [turn.search is not None for turn in rest.turns] == [True, False]


def test_a_directory_without_steps_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="no steps with episodes"):
        run_steps(tmp_path)
