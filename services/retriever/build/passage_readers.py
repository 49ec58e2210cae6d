"""Streams passages from JSONL, TSV and Parquet files, in the formats that are in use.

| form | columns |
|---|---|
| ours, BEIR | `id` (or `_id`), `title`, `text` |
| wiki-18, FlashRAG | `id`, `contents`: the title on the first line, perhaps in quotes, the text on the others |
| DPR | TSV with the header `id text title` |

Other columns, such as `url`, are kept and served beside them, but those of Parquet that are no text, number or truth.
JSONL and TSV may be compressed (`.gz`, `.zst`). A directory stands for all such files in it, in order of name.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from research.atomic_io import sha256_of
from research.errors import AssetError
from research.passages import CorpusRow, Passage, contents_of

_FORMATS = (".jsonl", ".json", ".tsv", ".parquet")
_COMPRESSED = (".gz", ".zst")
_COLUMNS = ("id", "_id", "title", "text", "contents")
_PARQUET_ROWS = 4096
_READ_BYTES = 2**20
# The longest field that a TSV may have; Python's own limit is 128 KiB.
_MAX_FIELD_CHARS = 16 * 2**20


def read_passages(path: Path) -> Iterator[Passage]:
    """Stream the passages of a file or of a directory of files.

    Raises:
        AssetError: a file is missing, of no known format, or has an invalid record; the message names file and line.
    """
    for file in corpus_files(path):
        try:
            for number, record in enumerate(_records(file), start=1):
                yield passage_from_record(record, f"{file}: record {number}")
        except AssetError:
            raise
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise AssetError(f"cannot read passages {file}: {error}") from error


def corpus_files(path: Path) -> list[Path]:
    """The files that `path` stands for, in order.

    Raises:
        AssetError: there is none, or one of no known format.
    """
    if not path.exists():
        raise AssetError(f"there are no passages at {path}; run `research prepare`, or name an existing file")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _format(file) in _FORMATS)
        if not files:
            raise AssetError(f"no file in {path} ends in {', '.join(_FORMATS)} (or .gz or .zst of the first three)")
        return files
    if _format(path) not in _FORMATS:
        raise AssetError(f"{path} is not a passage file; use {', '.join(_FORMATS)} (or .gz or .zst of the first three)")
    return [path]


def corpus_digest(path: Path) -> str:
    """SHA-256 of a file, or of the digests of a directory's files, as hex.

    Raises:
        AssetError: the passages are missing or empty.
    """
    files = corpus_files(path)
    try:
        filled = any(file.stat().st_size for file in files)
        digests = [sha256_of(file) for file in files]
    except OSError as error:
        raise AssetError(f"cannot read passages {path}: {error.strerror}") from error
    if not filled:
        raise AssetError(f"{path} is empty: there is nothing to index")
    return digests[0] if path.is_file() else hashlib.sha256("".join(digests).encode()).hexdigest()


def _format(file: Path) -> str:
    return Path(file.stem).suffix if file.suffix in _COMPRESSED else file.suffix


def _records(file: Path) -> Iterator[dict[str, Any]]:
    if _format(file) == ".parquet":
        return _parquet_records(file)
    return _tsv_records(file) if _format(file) == ".tsv" else _json_records(file)


def _json_records(file: Path) -> Iterator[dict[str, Any]]:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield orjson.loads(line.removeprefix(codecs.BOM_UTF8))
            except orjson.JSONDecodeError as error:
                raise AssetError(f"{file}: line {number} is not JSON ({error})") from error


def _tsv_records(file: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_MAX_FIELD_CHARS)
    with _open(file) as lines:
        # With `strict`, a quote that is never closed is an error instead of a passage that swallows the next ones.
        yield from csv.DictReader(
            (line.decode("utf-8-sig" if n == 0 else "utf-8") for n, line in enumerate(lines)),
            delimiter="\t",
            strict=True,
        )


def _parquet_records(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        opened = parquet.ParquetFile(file)
        columns = [field.name for field in opened.schema_arrow if field.name in _COLUMNS or _is_plain(field.type)]
        for batch in opened.iter_batches(_PARQUET_ROWS, columns=columns):
            yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise AssetError(f"{file} is not a Parquet file ({error})") from error


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
    )


def _open(file: Path) -> BinaryIO:
    if file.suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    if file.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(file), compression="zstd"), _READ_BYTES)
    return file.open("rb")


def passage_from_record(record: dict[str, Any], where: str) -> Passage:
    if not isinstance(record, dict):
        raise AssetError(f"{where} is not an object of id, title and text")
    own_id = record.get("id", record.get("_id"))
    if own_id is None or own_id == "":
        raise AssetError(f"{where} has no `id`; it has {_names(record)}")
    if isinstance(record.get("title"), str) and isinstance(record.get("text"), str):
        return _row(str(own_id), record["title"], record["text"], record)
    if isinstance(record.get("contents"), str):
        title, _, text = record["contents"].partition("\n")
        title = title.strip()
        quoted = len(title) > 1 and title[0] == title[-1] == '"'
        return _row(str(own_id), title[1:-1] if quoted else title, text, record)
    raise AssetError(f"{where} has neither `title` and `text` nor `contents`; it has {_names(record)}")


def _row(own_id: str, title: str, text: str, record: dict[str, Any]) -> Passage:
    """The passage, with what else its record says."""
    more = {
        name: value
        for name, value in record.items()
        if name and name not in _COLUMNS and value not in (None, "", [], {})  # a TSV names what it has no name for None
    }
    if "contents" in record and record["contents"] != contents_of(title, text):
        more["contents"] = record["contents"]
    if not more:
        return Passage(own_id, title, text)
    return CorpusRow(own_id, title, text, orjson.dumps(more, default=str).decode())


def _names(record: Iterable[Any]) -> str:
    return ", ".join(f"`{name}`" for name in record) or "nothing"
