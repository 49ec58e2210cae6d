"""One JSONL file a run: a first line that says what was run, then a line for each question that was answered.

A run goes on where it was interrupted; under other conditions it does not go on at all.
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
    """What two runs do not have in common, a line each; runs that differ in the model measure the model."""
    return [
        f"{name}: {these.get(name)!r} and {those.get(name)!r}"
        for name in sorted(these.keys() | those.keys())
        if these.get(name) != those.get(name)
    ]


class Records:
    """The file of one run, open for more.

    Args:
        path: of the file; it is begun if it is not there.
        conditions: everything that an answer depends on, as JSON: strategy, questions, prompt, model, weights, index,
            limits, sampling.

    Raises:
        ConfigurationError: the file is of a run under other conditions (they are named), or is being written.
        AssetError: it cannot be read.
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
                    f"{path} was begun under other conditions: {'; '.join(faults)}; name another directory, or move it "
                    "away"
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
        """Keep one answer, on the disk before this returns; `record["id"]` names its question.

        Raises ValueError if the question has been answered already.
        """
        identifier = str(record["id"])
        if identifier in self.done:
            raise ValueError(f"question {identifier} has been answered already")
        self._lines.add(record)
        self.done.add(identifier)


def read_conditions(path: Path) -> dict[str, Any] | None:
    """What was run; None if a kill came before that was written. Raises AssetError if it is no file of the bench."""
    lines = read_lines(path)
    first = next(lines, None)
    return None if first is None else _conditions(path, iter([first]))


def read_records(path: Path, left_out: Collection[str] = ()) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Conditions and answers of a run, without some of their fields. Raises AssetError that names the broken line."""
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
        raise AssetError(f"{path} is no file of the bench: its first line has no conditions")
    conditions: dict[str, Any] = first["conditions"]
    return conditions


def _id_of(path: Path, number: int, record: Mapping[str, Any]) -> str:
    if "id" not in record:
        raise AssetError(f"{path}:{number}: not a record of the bench")
    return str(record["id"])
