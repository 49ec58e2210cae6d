"""Finished and unfinished runs of the bench, read back from their directories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.bench.judge import Verdict, Verdicts, last_judge
from research.bench.records import differences, read_conditions, read_records
from research.errors import AssetError, ConfigurationError
from research.strategies import STRATEGIES

VERDICTS = "verdicts.jsonl"
_LONG_FIELDS = ("trace", "passages")
_OWN_CONDITIONS = ("strategy", "prompt", "set", "questions", "supporting", "asked")


@dataclass(frozen=True, slots=True)
class BenchRun:
    """One strategy on one question set; `label` is the name of the directory, `judge` the model that gave the verdicts.

    `records` omit traces and passages; the file at `path` has them.
    """

    label: str
    path: Path
    set: str
    strategy: str
    conditions: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    judge: str | None
    verdicts: Verdicts | None

    @property
    def missing(self) -> int:
        """Unanswered questions: a service was unavailable, or the run was interrupted."""
        return int(self.conditions.get("asked", len(self.records))) - len(self.records)

    def verdict(self, record: Mapping[str, Any]) -> Verdict | None:
        return self.verdicts.of(record) if self.verdicts else None


def read_runs(directories: Iterable[Path], judge: str = "") -> list[BenchRun]:
    """Every run in some directories of `research bench`, by directory, set and strategy (in the order of `STRATEGIES`).

    The verdicts are those of `judge`, or of the last judge in each directory.

    Raises:
        AssetError: a directory holds no run, or a file is corrupt.
        ConfigurationError: two directories have the same name.
    """
    runs: list[BenchRun] = []
    labels: set[str] = set()
    for directory in directories:
        label = directory.resolve().name
        if label in labels:
            raise ConfigurationError(f"two directories are called {label}; rename one, the report needs distinct names")
        labels.add(label)
        files = [path for path in run_files(directory) if read_conditions(path)]
        if not files:
            raise AssetError(f"{directory} holds no run of `research bench`")
        named = judge or last_judge(directory / VERDICTS)
        verdicts = Verdicts(directory / VERDICTS, named) if named else None
        for path in files:
            conditions, records = read_records(path, left_out=_LONG_FIELDS)
            # Another strategy of the directory may have been judged, and this one not.
            judged = verdicts if verdicts and verdicts.covers(path.parent.name, path.stem) else None
            by = named if judged else None
            runs.append(BenchRun(label, path, path.parent.name, path.stem, conditions, records, by, judged))
    return runs


def run_files(directory: Path) -> list[Path]:
    """The record files of a directory, by set and strategy."""
    files = [path for path in directory.glob("*/*.jsonl") if path.stem in STRATEGIES]
    return sorted(files, key=lambda path: (path.parent.name, STRATEGIES.index(path.stem)))


def shared_conditions(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions that all runs of one directory share; a directory is one measurement."""
    return {name: value for name, value in conditions.items() if name not in _OWN_CONDITIONS}


def what_differs(runs: Sequence[BenchRun]) -> dict[str, list[str]]:
    """For runs of one strategy and set: how each later label differs from the first, by label.

    Empty if nothing differs; a different judge counts.
    """
    first, *others = runs
    found = {}
    for other in others:
        these, those = ({**run.conditions, "judge": run.judge} for run in (first, other))
        if faults := differences(these, those):
            found[other.label] = faults
    return found
