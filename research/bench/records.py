"""One JSONL file a run: a first line that says what was run, then a line for each question that was answered.

A run goes on where it was interrupted; under other conditions it does not go on at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from research.bench.lines import GrowingLines, read_lines
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
        self._lines = GrowingLines(path)
        try:
            if self._lines.is_empty:
                self._lines.add({"conditions": conditions})
            found, records = read_records(path)
            if faults := differences(found, conditions):
                raise ConfigurationError(
                    f"{path} was begun under other conditions: {'; '.join(faults)}; name another directory, or move it "
                    "away"
                )
        except BaseException:
            self._lines.close()
            raise
        self.done = {str(record["id"]): record for record in records}

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
        self.done[identifier] = dict(record)


def read_records(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Conditions and answers of a run. Raises AssetError that names the broken line."""
    lines = read_lines(path)
    _, first = next(lines, (1, {}))
    if not isinstance(first.get("conditions"), dict):
        raise AssetError(f"{path} is no file of the bench: its first line has no conditions")
    records = []
    for number, record in lines:
        if "id" not in record:
            raise AssetError(f"{path}:{number}: not a record of the bench")
        records.append(record)
    return first["conditions"], records
