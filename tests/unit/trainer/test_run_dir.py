"""The files of a run: what may change on resumption, and the report that is made from them alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from research.errors import ConfigurationError
from research.scoring.evaluate import KindFigures
from services.trainer.evaluation.report import write_report
from services.trainer.run_dir import metrics_file
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.status import RunPhase, RunStatus
from tests.support.tiny_model import tiny_settings


def entry(step: int) -> Any:
    return {
        "step": step,
        "version": step + 1,
        "reward": 0.1 * step,
        "em": 0.0,
        "searches": 1.5,
        "sampled_tokens": 80.0,
        "update": None if step == 2 else {"mismatch_kl": 0.001},
        "seconds": {"rollout": 1.0},
    }


def figures(em: float) -> dict[str, KindFigures]:
    return {kind: KindFigures(8, em, em, em, 1.0, 1.0, 0.0, 0.0, 0) for kind in ("one_hop", "two_hop")}


def test_a_run_goes_on_only_with_the_settings_that_define_it(tmp_path: Path) -> None:
    record = RunDirectory(tmp_path / "run")
    record.open(tiny_settings(tmp_path))
    record.open(tiny_settings(tmp_path, "trainer.port=9000", "grpo.steps=50"))
    with pytest.raises(ConfigurationError, match=r"grpo\.group_size, model\.name.*--fresh"):
        record.open(tiny_settings(tmp_path, "grpo.group_size=3", "model.name=./other"))


def test_steps_beyond_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    record = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        record.add_metrics(entry(step))
    record.delete_steps_after(2)
    assert [e["step"] for e in record.metrics()] == [1, 2]
    record.delete_steps_after(0)
    assert record.metrics() == []


def test_metrics_are_read_once_and_follow_a_rollback_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []

    def parse(record: Any) -> Any:
        parsed.append(record["step"])
        return record

    monkeypatch.setattr(metrics_file, "entry_from_json", parse)
    writer, reader = RunDirectory(tmp_path), RunDirectory(tmp_path)
    for step in (1, 2, 3):
        writer.add_metrics(entry(step))
        assert [e["step"] for e in reader.metrics()] == list(range(1, step + 1))
    assert parsed == [1, 2, 3]
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, ')
        file.flush()
        assert len(reader.metrics()) == 3
        file.write(b'"version": 4}\n')
    assert [e["step"] for e in reader.metrics()] == [1, 2, 3, 4]
    writer.delete_steps_after(1)
    writer.add_metrics(entry(2) | {"version": 20})
    writer.add_metrics(entry(3))
    writer.add_metrics(entry(4))
    assert [e["version"] for e in reader.metrics()][:2] == [e["version"] for e in writer.metrics()][:2]
    assert [e["step"] for e in reader.metrics()] == [1, 2, 3, 4]
    assert reader.metrics()[1]["version"] == 20
    (tmp_path / "metrics.jsonl").unlink()
    assert reader.metrics() == []


def test_the_report_is_made_from_the_files_alone(tmp_path: Path) -> None:
    record = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        record.add_metrics(entry(step))
    for stage, em in (("before", 0.0), ("sft", 0.25), ("after", 0.5)):
        record.write_evaluation(stage, [], figures(em))
    summary = json.loads(write_report(RunDirectory(tmp_path), {"rollout": 3.0}).read_text())
    assert summary["steps"] == 3
    assert summary["reward_per_step"] == pytest.approx([0.1, 0.2, 0.3])
    assert summary["weight_versions"] == [2, 3, 4]
    assert summary["mismatch_kl_per_step"] == [0.001, None, 0.001]
    assert [summary["eval"][stage]["two_hop"]["em"] for stage in summary["eval"]] == [0.0, 0.25, 0.5]
    assert "| after | two_hop | 0.500 |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "training.png").stat().st_size > 1000
    assert record.is_finished(3)
    assert not record.is_finished(4)


def test_status_tells_its_listeners() -> None:
    status = RunStatus("run", 3)
    heard: list[str] = []
    status.listeners.append(heard.append)
    status.enter(RunPhase.ROLLOUT, total=4)
    status.advance()
    status.log("a line")
    summary_line = status.as_dict()
    assert (summary_line["phase"], summary_line["done"], summary_line["total"], summary_line["lines"], heard) == (
        "rollout",
        1,
        4,
        ["a line"],
        ["a line"],
    )
