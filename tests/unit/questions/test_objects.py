"""What public data sets have in the place of answers, and in their texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builtin.prepare import passages_path
from research.config import load_settings
from research.errors import AssetError
from research.questions.gold import load_gold
from research.questions.model import Question, read_questions, write_questions
from research.questions.sources import hub_copy, questions_from_records

TRIVIA = {"aliases": ["Paris"], "value": "Paris", "type": "WikipediaEntity"}


@pytest.mark.parametrize(
    "record",
    [
        {"question": "Where?", "answer": TRIVIA},
        {"question": "Where?", "golden_answers": TRIVIA},
        {"id": "1", "text": "Where?", "answers": TRIVIA},
    ],
)
def test_an_object_is_no_list_of_answers(record: dict[str, object]) -> None:
    """Its keys would be: `value` would be right, and Paris wrong."""
    with pytest.raises(AssetError, match="its answers are an object"):
        questions_from_records([record], "a set")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085", "\x0c"])
def test_signs_that_only_look_like_the_end_of_a_line_stay_in_a_question(tmp_path: Path, sign: str) -> None:
    path, asked = tmp_path / "questions.jsonl", Question("1", f"Where{sign}is it?", ("Paris",))
    write_questions(path, [asked])
    assert read_questions(path) == [asked]
    paragraphs = [{"title": "Paris", "paragraph_text": f"It is{sign}there.", "is_supporting": True}]
    record = {"id": "2hop__1", "question": "Where?", "answer": "Paris", "paragraphs": paragraphs}
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    [query] = load_gold(path)
    assert query.text == "Where?"


def test_each_corpus_of_a_hub_has_a_file_of_its_own(tmp_path: Path) -> None:
    """By the name of the index, another data set would have been taken for the one that is there."""
    names = ["builtin:wikipedia-leads", "hub:a/wiki::train", "hub:b/wiki::train"]
    given = (load_settings(overrides=[f"paths.data={tmp_path}", f"corpus.name={name}"]) for name in names)
    paths = [passages_path(settings) for settings in given]
    assert len({*paths}) == 3
    assert paths[1] == hub_copy(tmp_path, names[1], "corpus") != hub_copy(tmp_path, names[1])
