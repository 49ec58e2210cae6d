"""Finished and unfinished runs of the bench, read back from their directories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.bench.judge import Verdict, Verdicts, last_judge
from research.bench.records import differences, read_records
from research.errors import AssetError, ConfigurationError
from research.strategies import STRATEGIES

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True, slots=True)
class BenchRun:
    """One strategy on one question set; `label` is the name of the directory, `judge` who gave the verdicts."""

    label: str
    set: str
    strategy: str
    conditions: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    judge: str | None
    verdicts: Verdicts | None

    @property
    def missing(self) -> int:
        """Questions that were not answered: nobody could be asked, or the run was interrupted."""
        return int(self.conditions.get("asked", len(self.records))) - len(self.records)

    def verdict(self, record: Mapping[str, Any]) -> Verdict | None:
        return self.verdicts.of(record) if self.verdicts else None


def read_runs(directories: Iterable[Path]) -> list[BenchRun]:
    """Every run below some directories of `research bench`, by directory, set and strategy as `STRATEGIES` has them.

    Raises:
        AssetError: a directory holds no run, or a file is broken.
        ConfigurationError: two directories have one name.
    """
    runs: list[BenchRun] = []
    labels: set[str] = set()
    for directory in directories:
        label = directory.resolve().name
        if label in labels:
            raise ConfigurationError(f"two directories are called {label}; rename one, the report goes by their names")
        labels.add(label)
        files = [path for path in directory.glob("*/*.jsonl") if path.stem in STRATEGIES]
        if not files:
            raise AssetError(f"{directory} holds no run of `research bench`")
        judge = last_judge(directory / VERDICTS)
        verdicts = Verdicts(directory / VERDICTS, judge) if judge else None
        for path in sorted(files, key=lambda path: (path.parent.name, STRATEGIES.index(path.stem))):
            conditions, records = read_records(path)
            runs.append(BenchRun(label, path.parent.name, path.stem, conditions, records, judge, verdicts))
    return runs


def what_differs(runs: Sequence[BenchRun]) -> dict[str, list[str]]:
    """For runs of one strategy and set: what each later label does not share with the first, by label.

    Empty if they differ in nothing; a judge that differs counts.
    """
    first, *others = runs
    found = {}
    for other in others:
        these, those = ({**run.conditions, "judge": run.judge} for run in (first, other))
        if faults := differences(these, those):
            found[other.label] = faults
    return found
