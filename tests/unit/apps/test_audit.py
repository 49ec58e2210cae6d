"""`research audit` without an index: searches of hops, whole words, the report and its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from apps.audit.chains import chains_of
from apps.audit.measure import Audited, normal_title, spaced
from apps.audit.report import missing_pages, write_audit
from research.questions import Hop, Question, read_questions
from research.questions.sources import load_questions

MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who was the first president of the publisher of the Journal?",
    "paragraphs": [
        {"title": "Journal", "paragraph_text": "Published by the Union.", "is_supporting": True},
        {"title": "Union", "paragraph_text": "Its first president was G. Stanley Hall.", "is_supporting": True},
    ],
    "question_decomposition": [
        {"question": "Journal >> publisher", "answer": "Union", "paragraph_support_idx": 0},
        {"question": "Who was the first president of #1 ?", "answer": "G. Stanley Hall", "paragraph_support_idx": 1},
    ],
    "answer": "G. Stanley Hall",
    "answer_aliases": [],
    "answerable": True,
}


def question(name: str, kind: str = "two_hop", **more: str) -> Question:
    return Question(name, f"Which is {name}?", ("x",), kind=kind, supporting=("A", "B"), **more)  # type: ignore[arg-type]


def found(name: str, *, missing: tuple[str, ...] = (), said: bool = True, served: bool = True, **more: str) -> Audited:
    return Audited(question(name, **more), missing, said, {"vectors": False}, {"vectors": served}, served)


def test_a_chain_asks_with_the_answers_of_the_hops_before(tmp_path: Path) -> None:
    path = tmp_path / "musique.jsonl"
    path.write_text(json.dumps(MUSIQUE) + "\n", encoding="utf-8")
    questions = load_questions(str(path), "held_out", tmp_path)
    assert chains_of(str(path), questions) == {
        "2hop__1_2": ("Journal publisher", "Who was the first president of Union ?")
    }


def test_hops_and_else_titles_are_the_chain() -> None:
    own = Question("1", "q", ("a",), hops=(Hop("search", "goal", "Title", "a"),))
    assert chains_of("builtin", [own, question("2")]) == {"1": ("search",), "2": ("A", "B")}


@pytest.mark.parametrize(
    ("answer", "text", "stands"),
    [
        ("1875", "Ada (1875–1941) was a novelist", True),
        ("1,200", "with 1200 people", True),
        ("the Niger River", "named after Niger River", True),
        ("U.S.", "in the U.S. and", True),
        ("art", "He was an artist", False),
        ("Café", "the cafe\u0301 was", True),
        ("!", "anything", False),
    ],
)
def test_an_answer_stands_in_a_text_as_whole_words(answer: str, text: str, stands: bool) -> None:
    assert (bool(spaced(answer)) and spaced(answer) in spaced(text)) == stands


def test_titles_of_one_page_are_one() -> None:
    assert normal_title("Alpe_d'Huez") == normal_title("alpe  D'huez")
    assert normal_title("Caf\u00e9") == normal_title("Cafe\u0301")
    assert normal_title("Paris") != normal_title("Paris (film)")


def test_answerable_is_what_is_there_and_found_as_served() -> None:
    assert found("1").is_answerable
    assert not found("1", missing=("A",)).is_answerable
    assert not found("1", said=False).is_answerable
    assert not found("1", served=False).is_answerable


def test_the_report_has_a_row_per_kind_and_files_to_go_on_with(tmp_path: Path) -> None:
    hostile = found("<script>alert(1)</script>", missing=("A <b>", "B"), kind="one|hop")
    sets = {"set": [found("1"), found("2", said=False), hostile, found("4", missing=("B",), said=False)]}
    shown = write_audit(tmp_path, sets, {"other": 3}, {"index": "i", "top_k": 5})
    assert "| set, all | 4 | 0.500 | 0.500 | 0.000 | 1.000 | 1.000 | 0.250 |" in shown
    assert "| set, two_hop | 3 |" in shown
    assert [each.id for each in read_questions(tmp_path / "set-answerable.jsonl")] == ["1"]
    assert missing_pages(sets) == [("B", 2), ("A <b>", 1)]
    with (tmp_path / "missing-pages.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["title", "questions"], ["B", "2"], ["A <b>", "1"]]
    figures = json.loads((tmp_path / "audit.json").read_text())
    assert figures["sets"]["set"]["all"]["answerable"] == 0.25
    assert figures["without_titles"] == {"other": 3}
    page = (tmp_path / "audit.html").read_text()
    assert "<script" not in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert "&lt;script&gt;" in page
    assert "not in the corpus: A &lt;b&gt;, B" in page
    assert "3 questions of other name no pages" in page
