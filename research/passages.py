"""Passages, the unit of retrieval, and their JSONL form: one `{"id", "title", "text"}` per line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from research.atomic_io import atomic_write
from research.errors import AssetError


@dataclass(frozen=True, slots=True)
class Passage:
    """A titled piece of text with a stable id."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class CorpusRow(Passage):
    """A passage whose row in the corpus says more than id, title and text.

    `fields` is a JSON object of it, such as `url`; `contents` is in it if title and text do not give it back.
    """

    fields: str


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage that was found, and how well it matched; higher is better."""

    passage: Passage
    score: float


def contents_of(title: str, text: str) -> str:
    """Title and text as one, in the form of wiki-18."""
    return f'"{title}"\n{text}'


def write_passages(path: Path, passages: Iterable[Passage]) -> None:
    """Write one JSON object per line, next to the target first, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as out:
        for passage in passages:
            record = asdict(passage)
            fields = json.loads(record.pop("fields", "{}"))
            out.write(json.dumps(record | fields, ensure_ascii=False).encode() + b"\n")


def iter_passages(path: Path) -> Iterator[Passage]:
    """Stream passages from JSONL; raises AssetError naming the invalid line."""
    try:
        stream = path.open(encoding="utf-8")
    except OSError as error:
        raise AssetError(f"cannot read passages {path}: {error.strerror}; run `research prepare` first") from error
    with stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                yield Passage(id=str(record["id"]), title=record["title"], text=record["text"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise AssetError(f"{path}:{number} is not a passage record ({error!r})") from error
