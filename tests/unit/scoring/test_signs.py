"""Signs over several episodes, and in the figures of an evaluation."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.episode.agent import Episode, Turn
from research.errors import ServiceError
from research.passages import Passage
from research.questions import Question
from research.scoring.evaluate import Answered, figures_as_dict, figures_of
from research.scoring.reward import score
from research.scoring.signs import Row, signs_of

NAMED = Question("n", "?", ("Paris",), kind="two_hop", supporting=("France",))
PLAIN = Question("p", "?", ("Paris",), kind="one_hop")


def row(question: Question, answer: str, *titles: str) -> Row:
    """An episode of one search per title, then the answer, if any."""
    turns = [Turn(f"<search>{title}</search>", title, [Passage("1", title, "…")]) for title in titles]
    last = f"<answer>\\boxed{{{answer}}}</answer>" if answer else "I do not know."
    turns.append(Turn(f"<think>this is what I think</think>{last}"))
    episode = Episode("?", [], turns=turns)
    return question, episode, score(episode.answer, question.answers, episode.format_fault)


def test_shares_are_taken_of_what_they_are_about() -> None:
    rows = [
        row(NAMED, "Paris", "Spain", "France"),
        row(NAMED, "Lyon", "France", "France"),
        row(NAMED, "Paris", "Spain"),
        row(PLAIN, "", "Spain"),
        row(PLAIN, "Paris"),
    ]
    assert signs_of(rows) == {
        "repetition": 0,
        "empty_thoughts": pytest.approx(6 / 11),
        "unanswered": pytest.approx(1 / 5),
        "searched": pytest.approx(4 / 5),
        "planned": 0,
        "repeated_queries": pytest.approx(1 / 6),
        "found": pytest.approx(2 / 3),
        "read": pytest.approx(1 / 2),
    }


def test_a_share_of_nothing_is_absent() -> None:
    assert signs_of([]) == {}
    assert signs_of([row(PLAIN, "Paris")]) == {"repetition": 0, "empty_thoughts": 0, "unanswered": 0, "searched": 0}
    assert "read" not in (nothing_found := signs_of([row(NAMED, "Paris", "Spain")]))
    assert nothing_found["found"] == 0


@given(st.lists(st.sampled_from(["Paris", "Lyon", ""]), min_size=1), st.lists(st.sampled_from(["Spain", "France"])))
def test_shares_lie_between_0_and_1_and_ignore_order(answers: list[str], titles: list[str]) -> None:
    rows = [row(NAMED, answer, *titles[: number % 3]) for number, answer in enumerate(answers)]
    signs = signs_of(rows)
    assert all(0 <= cast(float, value) <= 1 for value in signs.values())
    assert signs_of(rows[::-1]) == pytest.approx(signs)


def test_an_evaluation_has_them_among_its_figures_by_kind() -> None:
    rows = [row(NAMED, "Paris", "France"), row(PLAIN, "Lyon")]
    unknown = Question("u", "?", ("x",), kind="comparison")
    _, figures = figures_of([NAMED, PLAIN, unknown], [*(Answered(*each) for each in rows), ServiceError("away")])
    written = figures_as_dict(figures)
    assert (written["two_hop"]["found"], written["two_hop"]["read"], written["two_hop"]["em"]) == (1, 1, 1)
    assert written["one_hop"]["searched"] == 0
    assert not {"found", "read", "signs"} & written["one_hop"].keys()
    assert (written["comparison"]["n"], written["comparison"]["failed"]) == (0, 1)
    assert "searched" not in written["comparison"]
