"""One JSONL file a run: a first line that says what was run, then a line for each question that was answered.

A run goes on where it was interrupted; under other conditions it does not go on at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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
        ConfigurationError: the file is of a run under other conditions; they are named.
        AssetError: it cannot be read.
    """

    def __init__(self, path: Path, conditions: Conditions) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        conditions = json.loads(json.dumps(conditions))
        self._stream = path.open("ab")
        try:
            _drop_torn_line(path)
            if path.stat().st_size == 0:
                self._write({"conditions": conditions})
            found, records = read_records(path)
            if faults := differences(found, conditions):
                raise ConfigurationError(
                    f"{path} was begun under other conditions: {'; '.join(faults)}; name another file or move it away"
                )
        except BaseException:
            self._stream.close()
            raise
        self.done = {str(record["id"]): record for record in records}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep one answer, on the disk before this returns; `record["id"]` names its question.

        Raises ValueError if the question has been answered already.
        """
        identifier = str(record["id"])
        if identifier in self.done:
            raise ValueError(f"question {identifier} has been answered already")
        self._write(record)
        self.done[identifier] = dict(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def read_records(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Conditions and answers of a run. Raises AssetError that names the broken line."""
    lines = _lines(path)
    _, first = next(lines, (1, {}))
    if not isinstance(first.get("conditions"), dict):
        raise AssetError(f"{path} is no file of the bench: its first line has no conditions")
    records = []
    for number, record in lines:
        if "id" not in record:
            raise AssetError(f"{path}:{number}: not a record of the bench")
        records.append(record)
    return first["conditions"], records


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AssetError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line:
            try:
                record = json.loads(line)
            except ValueError as error:
                raise AssetError(f"{path}:{number}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise AssetError(f"{path}:{number}: not a record of the bench")
            yield number, record


def _drop_torn_line(path: Path) -> None:
    """A kill in the middle of writing leaves a line without its end; its question is asked again."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
