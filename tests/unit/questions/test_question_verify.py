"""What `verify` finds wrong with a question, against the passages that it needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builtin.questions import verify
from builtin.questions.build import chains_and_facts
from research.questions import Hop, Question
from tests.support.small_corpus import BY_TITLE, GOOD, PASSAGES, SERVED_WORDS


@pytest.fixture(scope="module")
def questions() -> dict[str, Question]:
    return {question.id: question for question in chains_and_facts(PASSAGES, SERVED_WORDS)[0]}


def test_verify_accepts_a_sound_question() -> None:
    assert verify(GOOD, BY_TITLE, SERVED_WORDS) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "one_hop"}, "hops"),
        ({"hops": GOOD.hops[:1]}, "hops"),
        ({"kind": "three_hop"}, "hops"),
        ({"answers": ("1942",)}, "first gold answer"),
        ({"answers": ("1941", " ")}, "1 to 6 words"),
        ({"text": "When did Ada Winterbourne, author of The Glass Harbour, die?"}, "gives away"),
        ({"text": "In which year did the Winterbourne who wrote The Glass Harbour die?"}, "gives away"),
        ({"text": "Did the author of the novel The Glass Harbour die in 1941?"}, "gives away"),
        ({"text": ""}, "must not be empty"),
    ],
)
def test_verify_reports_a_broken_question(change: dict[str, object], problem: str) -> None:
    broken = replace(GOOD, **change)  # type: ignore[arg-type]
    assert any(problem in found for found in verify(broken, BY_TITLE, SERVED_WORDS))


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        (Hop("q", "g", "Ada Winterbourne", "194"), "does not occur"),
        (Hop("q", "g", "Nowhere", "1941"), "no passage"),
        (Hop("q", "g", "The Glass Harbour", "1921"), "same passage"),
    ],
)
def test_verify_reports_a_broken_hop(last: Hop, problem: str) -> None:
    broken = replace(GOOD, hops=(GOOD.hops[0], last), answers=(last.answer,))
    assert any(problem in found for found in verify(broken, BY_TITLE, SERVED_WORDS))


def test_verify_reports_a_first_passage_that_holds_the_answer() -> None:
    leaking = replace(BY_TITLE["The Glass Harbour"], text="1921 novel by Ada Winterbourne (1875–1941).")
    problems = verify(GOOD, {**BY_TITLE, leaking.title: leaking}, SERVED_WORDS)
    assert any("already holds" in problem for problem in problems)


def test_verify_looks_only_at_what_is_served() -> None:
    assert any("as served" in problem for problem in verify(GOOD, BY_TITLE, 2))


GOOD_COMPARISON = Question(
    id="comparison-born_first/ada-winterbourne/otto-lindqvist",
    text="Who was born first, Ada Winterbourne or Otto Lindqvist?",
    answers=("Ada Winterbourne",),
    kind="comparison",
    template="comparison-born_first",
    hops=(
        Hop("Ada Winterbourne birth year", "the birth year of Ada Winterbourne", "Ada Winterbourne", "1875"),
        Hop("Otto Lindqvist birth year", "the birth year of Otto Lindqvist", "Otto Lindqvist", "1922"),
    ),
)


def test_verify_accepts_a_sound_comparison() -> None:
    assert verify(GOOD_COMPARISON, BY_TITLE, SERVED_WORDS) == []
    assert verify(replace(GOOD_COMPARISON, answers=("yes",)), BY_TITLE, SERVED_WORDS) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answers": ("Huw Pritchard",)}, "nor named"),
        ({"answers": ("1875",)}, "the intermediate answer"),
        ({"text": "Who was born in 1875, Ada Winterbourne or Otto Lindqvist?"}, "gives away"),
        ({"hops": (GOOD_COMPARISON.hops[0], GOOD_COMPARISON.hops[0])}, "same passage"),
    ],
)
def test_verify_reports_a_broken_comparison(change: dict[str, object], problem: str) -> None:
    broken = replace(GOOD_COMPARISON, **change)  # type: ignore[arg-type]
    assert any(problem in found for found in verify(broken, BY_TITLE, SERVED_WORDS))


def test_verify_reports_a_step_that_can_be_left_out(questions: dict[str, Question]) -> None:
    question = questions["capital-country-neighbour-capital/holmstad-south"]
    for title, text in (
        ("Holmstad", "Capital of Norland. Holmstad lies near Sudria."),
        ("Norland", "Country in Europe. It is bordered by Sudria to the south, where Sudburg is."),
    ):
        telling = {**BY_TITLE, title: replace(BY_TITLE[title], text=text)}
        assert any("already holds" in problem for problem in verify(question, telling, SERVED_WORDS))
