"""One JSONL file per run: the first line holds its conditions, and each further line an answered question.

An interrupted run continues where it stopped, but only under the same conditions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from research.bench.jsonl import AppendOnlyJsonl, read_lines
from research.errors import AssetError, ConfigurationError

Conditions = Mapping[str, Any]


def differences(these: Conditions, those: Conditions) -> list[str]:
    """How two runs differ, one line per condition; runs that differ only in the model compare models."""
    return [
        f"{name}: {these.get(name)!r} and {those.get(name)!r}"
        for name in sorted(these.keys() | those.keys())
        if these.get(name) != those.get(name)
    ]


class Records:
    """The file of one run, open for appending.

    Args:
        path: the file; a missing one is created.
        conditions: everything that an answer depends on, as JSON: strategy, questions, prompt, model, weights, index,
            limits, sampling.

    Raises:
        ConfigurationError: the file is of a run under other conditions (the message names them), or is being written.
        AssetError: the file cannot be read.
    """

    def __init__(self, path: Path, conditions: Conditions) -> None:
        conditions = json.loads(json.dumps(conditions))
        self._lines = AppendOnlyJsonl(path)
        try:
            if self._lines.is_empty:
                self._lines.add({"conditions": conditions})
            lines = read_lines(path)
            found = _conditions(path, lines)
            if faults := differences(found, conditions):
                raise ConfigurationError(
                    f"{path} was started under other conditions: {'; '.join(faults)}; choose another directory, or "
                    "move this file away"
                )
            self.done = {_id_of(path, number, record) for number, record in lines}
        except BaseException:
            self._lines.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep one answer, on disk before this returns; `record["id"]` names its question.

        Raises ValueError if the question has been answered already.
        """
        identifier = str(record["id"])
        if identifier in self.done:
            raise ValueError(f"question {identifier} has been answered already")
        self._lines.add(record)
        self.done.add(identifier)


def read_conditions(path: Path) -> dict[str, Any] | None:
    """The conditions of a run; None if a kill came first. Raises AssetError if it is not a file of the bench."""
    lines = read_lines(path)
    first = next(lines, None)
    return None if first is None else _conditions(path, iter([first]))


def read_records(path: Path, left_out: Collection[str] = ()) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Conditions and answers of a run, without some of their fields. Raises AssetError naming the invalid line."""
    lines = read_lines(path)
    conditions = _conditions(path, lines)
    records = []
    for number, record in lines:
        _id_of(path, number, record)
        records.append({name: value for name, value in record.items() if name not in left_out})
    return conditions, records


def _conditions(path: Path, lines: Iterator[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    _, first = next(lines, (1, {}))
    if not isinstance(first.get("conditions"), dict):
        raise AssetError(f"{path} is not a file of the bench: its first line has no conditions")
    conditions: dict[str, Any] = first["conditions"]
    return conditions


def _id_of(path: Path, number: int, record: Mapping[str, Any]) -> str:
    if "id" not in record:
        raise AssetError(f"{path}:{number} is not a record of the bench")
    return str(record["id"])
