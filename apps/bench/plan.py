"""The files that a bench will fill, and whether they may go into the named directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.bench.sets import QuestionSet
from apps.bench.target import Target
from research.bench.records import differences, read_conditions
from research.bench.runs import run_files, shared_conditions
from research.errors import ConfigurationError
from research.questions import Question
from research.questions.model import digest_of
from research.schemas import StrategyName


@dataclass(frozen=True, slots=True)
class PlannedMeasurement:
    """One file of records to fill."""

    strategy: StrategyName
    questions: QuestionSet
    conditions: Mapping[str, Any]
    path: Path


async def plan(
    asked: Target, sets: Sequence[QuestionSet], strategies: Sequence[StrategyName], out: Path
) -> list[PlannedMeasurement]:
    """Every set with each strategy, and the conditions that the answers depend on."""
    planned = []
    for each in sets:
        about = {
            "set": each.name,
            "questions": digest_of(each.questions),
            "supporting": _digest_of_supporting(each.questions),
            "asked": len(each.questions),
        }
        for name in strategies:
            conditions = {**await asked.conditions(name), **about}
            planned.append(PlannedMeasurement(name, each, conditions, out / each.name / f"{name}.jsonl"))
    return planned


def _digest_of_supporting(questions: Sequence[Question]) -> str:
    titles = [question.supporting_titles for question in questions]
    return hashlib.sha256(json.dumps(titles).encode()).hexdigest()[:16]


def check_same_conditions(out: Path, planned: Sequence[PlannedMeasurement]) -> None:
    """Before asking, refuse a directory with runs under other conditions, such as another model or index."""
    asked = {each.questions.name: each.conditions for each in planned}
    here_now = json.loads(json.dumps(shared_conditions(planned[0].conditions)))
    for path in run_files(out):
        there = read_conditions(path)
        if there is None:
            continue
        faults = differences(shared_conditions(there), here_now)
        if (here := asked.get(path.parent.name)) and there.get("questions") != here["questions"]:
            faults.append("questions: they differ")
        if faults:
            raise ConfigurationError(
                f"{path} was begun under other conditions: {'; '.join(faults)}. A directory is one measurement; name "
                "another one (--out), or move this one away"
            )
