"""Trackers: flat names, what TensorBoard reads back, resumption, and failures that do not matter."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from services.trainer.telemetry.trackers import Trackers, evaluation_scalars, step_scalars
from tests.support.tiny_model import tiny_settings

FIGURES = {"one_hop": {"n": 64, "em": 0.5}, "two_hop": {"n": 64, "em": 0.25}}


@pytest.fixture(autouse=True)
def _no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def entry(step: int, reward: float) -> dict[str, Any]:
    return {
        "step": step,
        "reward": reward,
        "stop_reasons": {"answered": 5},
        "update": None if step == 2 else {"mismatch_kl": 0.001},
        "seconds": {"rollout": 1.5},
    }


def trackers(tmp_path: Path, after_step: int | None = None) -> Trackers:
    return Trackers(tmp_path / "run", tiny_settings(tmp_path), after_step)


def curve(tmp_path: Path, name: str) -> list[tuple[int, Any]]:
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_metrics_become_flat_numbers() -> None:
    assert step_scalars(entry(1, 0.5)) == {
        "train/reward": 0.5,
        "stop_reasons/answered": 5.0,
        "update/mismatch_kl": 0.001,
        "seconds/rollout": 1.5,
    }
    assert step_scalars({"step": 2, "update": None, "version": "7", "done": True, "list": [1]}) == {}
    assert step_scalars({"a": {"b": {"c": 1}}}) == {"a/b/c": 1.0}
    assert evaluation_scalars({"two_hop": {"em": 0.25, "f1": None}}) == {"eval/two_hop/em": 0.25}


def test_tensorboard_reads_what_was_told_even_before_the_run_ends(tmp_path: Path) -> None:
    summary_line = trackers(tmp_path)
    summary_line.evaluation("before", 0, {"two_hop": {"em": 0.0}})
    summary_line.evaluation("sft", 0, FIGURES)
    summary_line.evaluation("sampled", 0, {"two_hop": {"em": 0.125}})
    for step, reward in ((1, 0.5), (2, 0.625), (3, 0.75)):
        summary_line.step(step, entry(step, reward))
    summary_line.evaluation("after", 3, FIGURES)
    assert curve(tmp_path, "train/reward") == [(1, 0.5), (2, 0.625), (3, 0.75)]
    assert curve(tmp_path, "update/mismatch_kl") == [(1, 0.001), (3, 0.001)]
    assert curve(tmp_path, "eval/two_hop/em") == [(0, 0.25), (3, 0.25)]
    assert curve(tmp_path, "eval_before/two_hop/em") == [(0, 0.0)]
    assert curve(tmp_path, "eval_sampled/two_hop/em") == [(0, 0.125)]
    summary_line.close()


@pytest.mark.parametrize(
    ("after_step", "expected"),
    [
        pytest.param(1, [(1, 0.1), (2, 0.5)], id="goes on after step 1"),
        pytest.param(None, [(2, 0.5)], id="begins anew"),
    ],
)
def test_steps_that_are_done_again_replace_the_former_ones(
    tmp_path: Path, after_step: int | None, expected: list[tuple[int, float]]
) -> None:
    first = trackers(tmp_path)
    for step in (1, 2, 3):
        first.step(step, entry(step, 0.1 * step))
    first.close()
    resumed = trackers(tmp_path, after_step)
    resumed.step(2, entry(2, 0.5))
    resumed.close()
    assert curve(tmp_path, "train/reward") == expected


def test_a_failing_tracker_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file where the directory should be")
    with caplog.at_level(logging.WARNING):
        summary_line = trackers(tmp_path)
        summary_line.step(1, entry(1, 0.5))
        summary_line.evaluation("after", 1, FIGURES)
        summary_line.close()
    assert [record.message.split(" from")[0] for record in caplog.records] == ["TensorBoard is skipped"]
