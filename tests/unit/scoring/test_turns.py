"""What a search is worth by what it brought, and which turns are void."""

from __future__ import annotations

import pytest

from research.episode.agent import Episode, Turn
from research.passages import Passage
from research.questions import Hop, Question
from research.scoring.turns import is_void, turn_credits
from research.settings.credit import TurnsConfig

HOPS = (Hop("q", "g", "Night", "Vincent"), Hop("q", "g", "Vincent", "1853"))
QUESTION = Question("q", "When was the painter born?", ("1853",), hops=HOPS)
NIGHT, VINCENT = Passage("1", "Night", "By Vincent."), Passage("2", "Vincent", "Born 1853.")
OTHER, MORE_NIGHT = Passage("3", "Lamp", "Light."), Passage("4", "Night", "A second passage.")
TURNS = TurnsConfig(search_gain=1.0, search_loss=0.5, search_cost=0.25)


def episode(*found: list[Passage]) -> Episode:
    turns = [Turn(f"<search>{number}</search>", str(number), passages) for number, passages in enumerate(found)]
    return Episode("?", [], turns=[*turns, Turn("<answer>\\boxed{1853}</answer>")])


@pytest.mark.parametrize(
    ("found", "credits"),
    [
        pytest.param([], [0.0], id="no search"),
        pytest.param([[NIGHT], [VINCENT]], [0.75, 0.75, 0.0], id="each brings what is sought"),
        pytest.param([[NIGHT, VINCENT]], [0.75, 0.0], id="both at once count once"),
        pytest.param([[NIGHT], [NIGHT]], [0.75, -0.75, 0.0], id="the same again"),
        pytest.param([[OTHER], [OTHER, NIGHT]], [-0.25, 0.75, 0.0], id="new, but of no use, then found"),
        pytest.param([[NIGHT], [MORE_NIGHT]], [0.75, -0.25, 0.0], id="another passage of a title that was found"),
        pytest.param([[]], [-0.75, 0.0], id="nothing"),
    ],
)
def test_a_search_gains_by_what_is_sought_and_loses_by_bringing_nothing_new(
    found: list[list[Passage]], credits: list[float]
) -> None:
    assert turn_credits(episode(*found), QUESTION, TURNS) == credits


def test_supporting_titles_of_the_data_set_count_and_without_any_nothing_gains() -> None:
    named = Question("q", "?", ("1853",), supporting=("Lamp",))
    unknown = Question("q", "?", ("1853",))
    assert turn_credits(episode([OTHER]), named, TURNS) == [0.75, 0.0]
    assert turn_credits(episode([OTHER]), unknown, TURNS) == [-0.25, 0.0]


@pytest.mark.parametrize(
    ("text", "void"),
    [
        ("<think>hm</think><search>who</search>", False),
        ("<answer>\\boxed{1853}</answer>", False),
        ("<answer>1853</answer>", True),
        ("<search> </search>", True),
        ("<think>and so on and so", True),
        ("", True),
    ],
)
def test_a_void_turn_neither_searches_nor_answers(text: str, void: bool) -> None:
    assert is_void(Episode("?", []), Turn(text)) == void
