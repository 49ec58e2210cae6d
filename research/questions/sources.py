"""Question sets by name: the built-in one, a local file in a known format, or a data set of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from research.errors import AssetError
from research.questions.model import Question, question_from_dict, read_questions

BUILTIN = "builtin"
HUB_PREFIX = "hub:"
Split = Literal["train", "held_out"]


def builtin_path(data: Path, split: Split) -> Path:
    """Where `research prepare` writes the built-in questions."""
    return data / "questions" / f"builtin-{split}.jsonl"


def load_questions(name: str, split: Split, data: Path) -> list[Question]:
    """Load a question set.

    Args:
        name: `builtin`, a JSON or JSONL file, or `hub:<data set>:<config>:<split>` (an empty config is allowed).
        split: which part of the built-in set; other names already say what they mean.

    Raises:
        AssetError: the set is missing or holds something else.
    """
    if name == BUILTIN:
        return read_questions(builtin_path(data, split))
    if name.startswith(HUB_PREFIX):
        return questions_from_records(hub_records(name), name)
    path = Path(name)
    if path.suffix == ".json":
        return questions_from_records(_read_json_array(path), name)
    return questions_from_records(_read_json_lines(path), name)


def questions_from_records(records: Iterable[Mapping[str, Any]], source: str) -> list[Question]:
    """Read records of our own format, of MuSiQue, HotpotQA / 2WikiMultiHopQA, or FlashRAG."""
    questions = []
    for number, record in enumerate(records, start=1):
        try:
            questions.append(_question(record, number))
        except (KeyError, TypeError) as error:
            raise AssetError(f"{source}, record {number}: not a question of a known format ({error!r})") from error
    if not questions:
        raise AssetError(f"{source} holds no question")
    return questions


def hub_records(name: str) -> Iterable[Mapping[str, Any]]:
    """Stream the records of `hub:<data set>:<config>:<split>`; a local data set directory works too."""
    from datasets import load_dataset

    parts = name.removeprefix(HUB_PREFIX).split(":")
    if len(parts) != 3:
        raise AssetError(f"{name!r} is not of the form hub:<data set>:<config>:<split>")
    dataset, config, split = parts
    try:
        records: Iterable[Mapping[str, Any]] = load_dataset(dataset, config or None, split=split, streaming=True)
    except Exception as error:  # the library raises many kinds, none of them ours
        raise AssetError(f"data set {name!r} cannot be loaded: {error}") from error
    return records


def _question(record: Mapping[str, Any], number: int) -> Question:
    if "text" in record and "answers" in record:
        return question_from_dict(dict(record))
    identifier = str(record.get("id") or record.get("_id") or number)
    if "golden_answers" in record:
        answers = tuple(str(answer) for answer in record["golden_answers"])
    else:
        answers = (str(record["answer"]), *(str(alias) for alias in record.get("answer_aliases") or ()))
    return Question(id=identifier, text=record["question"], answers=answers, kind=_kind(record, identifier))


def _kind(record: Mapping[str, Any], identifier: str) -> str:
    """HotpotQA and 2Wiki name a type; MuSiQue writes the number of hops in front of its ids (`2hop__…`)."""
    if "type" in record:
        return str(record["type"])
    hops, separator, _ = identifier.partition("__")
    return hops if separator else "unknown"


def _read_json_array(path: Path) -> list[Mapping[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AssetError(f"cannot read questions {path}: {error}") from error
    if not isinstance(records, list):
        raise AssetError(f"{path} is not a JSON array of questions")
    return records


def _read_json_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AssetError(f"cannot read questions {path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise AssetError(f"{path}:{number}: not JSON ({error})") from error
