"""The searches that would find a question's passages, if a model knew each hop's answer before it asked the next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from research.questions import Question
from research.questions.files import read_question_file
from research.questions.sources import HUB_PREFIX, hub_records

_PLACE = re.compile(r"#(\d+)")


def chains_of(source: str, questions: Iterable[Question]) -> dict[str, tuple[str, ...]]:
    """By question id: the queries of its hops; those of MuSiQue with the earlier answers filled in; else its titles.

    Raises:
        AssetError: the source cannot be read.
    """
    decomposed = _decomposed(source)
    return {
        question.id: tuple(hop.query for hop in question.hops)
        or decomposed.get(question.id)
        or question.supporting_titles
        for question in questions
    }


def _decomposed(source: str) -> dict[str, tuple[str, ...]]:
    if source.startswith(HUB_PREFIX):
        records: Iterable[Mapping[str, Any]] = hub_records(source)
    elif Path(source).is_file():
        records = (record for _, record in read_question_file(Path(source)))
    else:
        return {}
    return {
        str(record["id"]): _filled_in(steps) for record in records if (steps := record.get("question_decomposition"))
    }


def _filled_in(steps: list[dict[str, Any]]) -> tuple[str, ...]:
    """`#1` becomes the answer of the first step; `a >> b`, a relation of a knowledge base, is asked in these words."""
    answers = [str(step["answer"]) for step in steps]

    def answer(found: re.Match[str]) -> str:
        number = int(found[1])
        return answers[number - 1] if 1 <= number <= len(answers) else found[0]

    return tuple(_PLACE.sub(answer, step["question"]).replace(" >> ", " ") for step in steps)
