"""The report of a run whose evaluations did not all ask the same kinds of questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from research.scoring.evaluate import KindFigures
from services.trainer.evaluation.report import write_report
from services.trainer.run_dir.run_dir import RunDirectory


def figures(em: float) -> KindFigures:
    return KindFigures(
        n=4, em=em, f1=em, reward=em, searches=1.0, well_formed=1.0, truncated=0.0, corrected=0.0, failed=0
    )


@pytest.mark.parametrize(
    "evaluations",
    [
        {},
        {"before": {}},
        {"before": {"one_hop": 0.1, "two_hop": 0.2}, "after": {"one_hop": 0.3}},
        {"before": {"one_hop": 0.1}, "sft": {"two_hop": 0.2}, "after": {}},
    ],
)
def test_evaluations_need_not_ask_the_same_kinds(tmp_path: Path, evaluations: dict[str, dict[str, float]]) -> None:
    """`evaluation.per_kind` may change between starts; a run that cannot write its report could never finish."""
    record = RunDirectory(tmp_path)
    for name, kinds in evaluations.items():
        record.write_evaluation(name, [], {kind: figures(em) for kind, em in kinds.items()})
    summary: dict[str, Any] = json.loads(write_report(record, {"rollout": 1.0}).read_text())
    assert {
        name: {kind: f["em"] for kind, f in kinds.items()} for name, kinds in summary["eval"].items()
    } == evaluations
    assert (tmp_path / "training.png").stat().st_size > 1000
