"""What a question is, and how question sets are read from and written to JSONL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from research.atomic_io import atomic_write
from research.errors import AssetError


@dataclass(frozen=True, slots=True)
class Hop:
    """One search that a chain needs.

    `query` is a plausible search, `goal` what it should find out (a phrase that completes "I need to find …"),
    `title` the passage that settles it, and `answer` the string to find in that passage. `beside` is the further text
    that confirms the answer ("north" beside the name of a neighbor), if any.
    """

    query: str
    goal: str
    title: str
    answer: str
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its gold answers (the first is canonical, the others aliases).

    `kind` groups questions for evaluation (`one_hop`, `two_hop`, …), `template` names the pattern that made it, and
    `entity` decides the train / held-out split. `new_template` marks a held-out question whose template never occurs in
    training. `supporting` are the titles that the data set names, if it has no hops.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str = "unknown"
    template: str = "unknown"
    entity: str = ""
    hops: tuple[Hop, ...] = field(default=())
    new_template: bool = False
    supporting: tuple[str, ...] = field(default=(), repr=False)  # not part of the digest of a question set

    @property
    def supporting_titles(self) -> tuple[str, ...]:
        """Titles of the passages that a chain needs, each once; none if they are not known."""
        return tuple(dict.fromkeys(self.supporting or (hop.title for hop in self.hops)))

    @property
    def stratum(self) -> str:
        """The group that figures are reported for: the kind, with new templates separate."""
        return f"{self.kind}_new_template" if self.new_template else self.kind


def question_from_dict(record: dict[str, Any]) -> Question:
    """Build a question from one JSON object.

    Raises KeyError or TypeError if fields are missing, unknown or invalid.
    """
    hops = tuple(Hop(**hop) for hop in record.get("hops", ()))
    if not isinstance(record["text"], str) or not record["text"].strip():
        raise TypeError("its question is blank or not text")
    kind = record.get("kind")
    converted = {
        "id": str(record["id"]),
        "answers": answers_of(record["answers"]),
        "kind": "unknown" if kind is None else str(kind),
    }
    return Question(**{**record, **converted, "supporting": tuple(record.get("supporting", ())), "hops": hops})


def answers_of(value: Any) -> tuple[str, ...]:
    """Gold answers as text, each once, from a list or a single one; numbers become text.

    Raises TypeError if there is none, or one that is neither text nor number.
    """
    if isinstance(value, Mapping):
        raise TypeError("its answers are an object, of which nobody says which are the answers")
    listed = [value] if isinstance(value, str | int | float) else list(value)
    if strange := [each for each in listed if not isinstance(each, str | int | float)]:
        raise TypeError(f"an answer is neither text nor number: {strange[0]!r}")
    answers = tuple(dict.fromkeys(str(each) for each in listed))
    if not any(answer.strip() for answer in answers):
        raise TypeError("it has no answer")
    return answers


def digest_of(questions: Iterable[Question]) -> str:
    """A SHA-256 that changes with any field of any question except `supporting`, and with their order."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr(question).encode())
    return digest.hexdigest()


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write one JSON object per line, next to the target first, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as out:
        for question in questions:
            out.write(json.dumps(asdict(question), ensure_ascii=False).encode() + b"\n")


def read_questions(path: Path) -> list[Question]:
    """Read a JSONL file written by `write_questions` (or by hand in the same format).

    Raises AssetError naming the line of the first invalid record.
    """
    return list(_parse_lines(path))


def _parse_lines(path: Path) -> Iterator[Question]:
    try:
        # Not `splitlines`, which also divides at signs that JSON may hold (U+2028).
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise AssetError(f"cannot read questions {path}: {error.strerror}; run `research prepare` first") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield question_from_dict(json.loads(line))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise AssetError(f"{path}:{number} is not a question record ({error!r})") from error
