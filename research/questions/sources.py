"""Question sets by name: the built-in one, a local file in a known format, or a data set of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from research.atomic_io import atomic_write
from research.errors import AssetError
from research.questions.benchmarks import benchmark_named
from research.questions.files import Placed, read_question_file
from research.questions.model import Question, answers_of, question_from_dict, read_questions

BUILTIN = "builtin"
BUILTIN_CORPUS = "builtin:wikipedia-leads"
OF_BUILTIN_CORPUS = f"the built-in ones belong to {BUILTIN_CORPUS}: questions.train=…, questions.held_out=…"
HUB_PREFIX = "hub:"
Split = Literal["train", "held_out"]


def builtin_path(data: Path, split: Split) -> Path:
    """Where `research prepare` writes the built-in questions."""
    return data / "questions" / f"builtin-{split}.jsonl"


def hub_copy(data: Path, name: str, kind: Literal["questions", "corpus"] = "questions") -> Path:
    """Where `research prepare` keeps the records of `hub:…`, for services that reach no hub."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # names may differ in the signs alone that are left out
    return data / kind / f"{re.sub(r'[^0-9A-Za-z.]+', '-', name)}-{digest}.jsonl"


def hub_name(name: str) -> str | None:
    """What a question set is called on the hub; None if it is not from there."""
    if benchmark := benchmark_named(name):
        name = benchmark.source
    return name if name.startswith(HUB_PREFIX) else None


def load_questions(name: str, split: Split, data: Path) -> list[Question]:
    """Load a question set.

    Args:
        name: `builtin`, one of `BENCHMARKS`, a file (`read_question_file`), or `hub:<data set>:<config>:<split>` (an
            empty config is allowed).
        split: which part of the built-in set; ignored for other names.

    Raises:
        AssetError: the set is missing or invalid.
    """
    if name == BUILTIN:
        return read_questions(builtin_path(data, split))
    if (on_hub := hub_name(name)) is not None:
        copy = hub_copy(data, on_hub)
        if copy.is_file():
            return _questions(read_question_file(copy), on_hub, {})
        return questions_from_records(hub_records(on_hub), on_hub)
    path = Path(name)
    return _questions(read_question_file(path), name, _aliases_beside(path))


def questions_from_records(records: Iterable[Mapping[str, Any]], source: str) -> list[Question]:
    """Read records of our own format, of MuSiQue, HotpotQA, 2WikiMultiHopQA, Bamboogle, FlashRAG or Search-R1."""
    return _questions(((f"record {number}", record) for number, record in enumerate(records, 1)), source, {})


def _questions(records: Iterable[Placed], source: str, aliases: Mapping[str, list[str]]) -> list[Question]:
    questions: list[Question] = []
    for place, record in records:
        try:
            questions.append(_question(record, len(questions) + 1, aliases))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AssetError(f"{source}, {place}, is not a question of a known format ({error!r})") from error
    if not questions:
        raise AssetError(f"{source} holds no question")
    if len(names := {question.id for question in questions}) < len(questions):
        raise AssetError(f"{source}: {len(questions) - len(names)} questions have the id of another question")
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
    except Exception as error:  # the library raises many types, none of them ours
        raise AssetError(f"data set {name!r} cannot be loaded ({error}); give a file of it instead") from error
    return records


def keep_hub_records(name: str, data: Path) -> Path:
    """Fetch `hub:…` to a file, which `load_questions` reads from then on; returns its path.

    Raises:
        AssetError: the hub does not have it, or cannot be reached.
    """
    copy = hub_copy(data, name)
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(copy) as out:
            for record in hub_records(name):
                out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return copy


def _question(record: Mapping[str, Any], number: int, aliases: Mapping[str, list[str]]) -> Question:
    if "text" in record and "answers" in record:
        return question_from_dict(dict(record))
    if record.get("answerable") is False:
        raise TypeError("its paragraphs do not answer it: this is MuSiQue-Full; use MuSiQue-Ans (musique_ans_…)")
    text = record["question"]
    if not isinstance(text, str) or not text.strip():
        raise TypeError("its question is blank or not text")
    own = record.get("id", record.get("_id"))
    identifier = str(number if own is None or own == "" else own)
    if "data_source" in record:  # Search-R1 merges sets that each count from 0
        identifier = f"{record['data_source']}/{identifier}"
    return Question(
        id=identifier,
        text=text.strip(),
        answers=_answers(record, aliases),
        kind=_kind(record, identifier),
        supporting=_supporting(record),
    )


def _supporting(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Titles of the passages that answer it, in the formats of MuSiQue, HotpotQA and 2Wiki; none for other formats."""
    record = _with_metadata(record)
    try:
        if isinstance(paragraphs := record.get("paragraphs"), list):
            return tuple(str(paragraph["title"]) for paragraph in paragraphs if paragraph["is_supporting"])
        facts = record.get("supporting_facts") or ()
        if isinstance(facts, Mapping):  # the form of the hub's data sets
            return tuple(str(title) for title in facts["title"])
        return tuple(_title(fact) for fact in facts)
    except (KeyError, TypeError, ValueError):
        return ()


def _title(fact: Any) -> str:
    """The title of `[title, sentence]`, or of an object with a title."""
    if isinstance(fact, Mapping):
        return str(fact["title"])
    if isinstance(fact, str):
        raise TypeError("neither a pair nor an object")
    title, _ = fact
    return str(title)


def _with_metadata(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """FlashRAG keeps under `metadata` what its own format has no field for."""
    metadata = record.get("metadata")
    return {**metadata, **record} if isinstance(metadata, Mapping) else record


def _answers(record: Mapping[str, Any], aliases: Mapping[str, list[str]]) -> tuple[str, ...]:
    """The gold answer first, then its aliases: FlashRAG's and Search-R1's list, MuSiQue's, or 2Wiki's own file."""
    if "golden_answers" in record:
        return answers_of(record["golden_answers"])
    if "reward_model" in record:
        return answers_of(record["reward_model"]["ground_truth"]["target"])
    others = record.get("answer_aliases") or aliases.get(str(record.get("answer_id")))
    return tuple(dict.fromkeys((*answers_of(record["answer"]), *(answers_of(others) if others else ()))))


def _aliases_beside(path: Path) -> dict[str, list[str]]:
    """2WikiMultiHopQA's `id_aliases.json`, one JSON object per line, if it is in the same folder."""
    file = path.with_name("id_aliases.json")
    if path.suffix != ".json" or not file.is_file():
        return {}
    try:
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        return {record["Q_id"]: _listed(record["aliases"]) + _listed(record.get("demonyms")) for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise AssetError(f"{file} is not 2WikiMultiHopQA's file of aliases ({error!r})") from error


def _listed(value: Any) -> list[str]:
    return list(answers_of(value)) if value else []


def _kind(record: Mapping[str, Any], identifier: str) -> str:
    """HotpotQA and 2Wiki name a type; MuSiQue puts the number of hops in front of its ids (`2hop__…`)."""
    kind = _with_metadata(record).get("type")
    if isinstance(kind, str):
        return kind
    hops = re.match(r"(\dhop\d?)__", identifier)
    return hops[1] if hops else "unknown"
