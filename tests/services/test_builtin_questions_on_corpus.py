"""The built-in question set on the real corpus: every chain holds, the split is clean, the counts are reached."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from research.passages import Passage, iter_passages
from research.questions import Question
from research.questions.builtin import QuestionSplit, build_questions, verify

CORPUS = Path(__file__).resolve().parents[2] / "data" / "corpus" / "wikipedia-leads.jsonl"
SERVED_WORDS = 34
AT_LEAST = {
    "train": {"one_hop": 2000, "two_hop": 425},
    "held_out": {"one_hop": 900, "two_hop": 185},
}


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    if not CORPUS.is_file():
        pytest.fail(f"the built-in corpus {CORPUS} is missing; run `make prepare`")
    return list(iter_passages(CORPUS))


@pytest.fixture(scope="module")
def split(passages: list[Passage]) -> QuestionSplit:
    return build_questions(passages, served_words=SERVED_WORDS)


@pytest.fixture(scope="module")
def parts(split: QuestionSplit) -> dict[str, list[Question]]:
    return {"train": split.train, "held_out": split.held_out}


def test_every_question_is_sound(passages: list[Passage], parts: dict[str, list[Question]]) -> None:
    by_title = {passage.title: passage for passage in passages}
    problems = {
        question.id: found
        for part in parts.values()
        for question in part
        if (found := verify(question, by_title, SERVED_WORDS))
    }
    assert problems == {}


def test_texts_and_ids_are_unique(split: QuestionSplit) -> None:
    everything = [*split.train, *split.held_out]
    assert len({question.id for question in everything}) == len(everything)
    assert len({question.text for question in everything}) == len(everything)


def test_no_subject_or_bridge_is_shared(split: QuestionSplit) -> None:
    trained = {hop.title for question in split.train for hop in question.hops}
    held_out = {hop.title for question in split.held_out for hop in question.hops}
    assert trained.isdisjoint(held_out)
    assert {question.entity for question in split.train}.isdisjoint(question.entity for question in split.held_out)


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_there_are_enough_of_each_kind(parts: dict[str, list[Question]], name: str) -> None:
    kinds = Counter(question.kind for question in parts[name])
    assert kinds.keys() == AT_LEAST[name].keys()
    for kind, least in AT_LEAST[name].items():
        assert kinds[kind] >= least


@pytest.mark.parametrize("kind", ["one_hop", "two_hop"])
def test_no_template_dominates_the_held_out_questions(split: QuestionSplit, kind: str) -> None:
    templates = Counter(question.template for question in split.held_out if question.kind == kind)
    assert max(templates.values()) <= 0.35 * templates.total()


@pytest.mark.parametrize("kind", ["one_hop", "two_hop"])
def test_no_answer_pays_without_a_search(split: QuestionSplit, kind: str) -> None:
    answers = Counter(question.answers[0] for question in split.held_out if question.kind == kind)
    assert max(answers.values()) <= 0.06 * answers.total()
