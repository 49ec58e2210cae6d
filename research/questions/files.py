"""Records of question files in JSON, JSONL, CSV or Parquet, each with its place in the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.errors import AssetError

Record = Mapping[str, Any]
Placed = tuple[str, Record]


def read_question_file(path: Path) -> Iterator[Placed]:
    """Every record of a file with its place ("line 7", "record 7"), for error messages.

    `.json` is an array or an object with one under `data`; `.csv` has a header; `.parquet` needs pyarrow; any other
    file is JSONL.

    Raises AssetError naming the file, the place and the reason.
    """
    readers = {".json": _json, ".csv": _csv, ".parquet": _parquet}
    try:
        yield from readers.get(path.suffix, _json_lines)(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise AssetError(f"cannot read questions {path}: {reason}") from error


def _json_lines(path: Path) -> Iterator[Placed]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise AssetError(f"{path}, line {number}, is not JSON ({error})") from error
            yield f"line {number}", record


def _json(path: Path) -> Iterator[Placed]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AssetError(f"{path} is not JSON ({error})") from error
    if isinstance(records, dict):
        records = records.get("data")
    if not isinstance(records, list):
        raise AssetError(f"{path} is not a JSON array of questions")
    yield from ((f"record {number}", record) for number, record in enumerate(records, 1))


def _csv(path: Path) -> Iterator[Placed]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, strict=True)
        try:
            for row in rows:
                yield f"line {rows.line_num}", {str(name).strip().lower(): value for name, value in row.items()}
        except csv.Error as error:
            raise AssetError(f"{path}, line {rows.line_num}, is not CSV ({error})") from error


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"record {number}", record
    except pyarrow.ArrowException as error:
        raise AssetError(f"{path} is not Parquet ({error})") from error
