"""What counts as a corrected query, and what does not."""

from __future__ import annotations

import pytest

from research.episode.agent import Episode, Turn
from research.episode.search_analysis import corrected_queries, search_facts
from research.forms.tags import TAGS
from research.passages import Passage
from research.questions import Hop, Question

HOPS = (
    Hop("The Starry Night painter", "who painted The Starry Night", "The Starry Night", "Vincent van Gogh"),
    Hop("Vincent van Gogh birth year", "when he was born", "Vincent van Gogh", "1853"),
)
TWO_HOP = Question("q", "When was the painter of The Starry Night born?", ("1853",), "two_hop", hops=HOPS)
NIGHT, VINCENT = "A painting by Vincent van Gogh.", "Dutch painter (1853–1890)."
NOTHING = "Night is the time of darkness."


def episode(*searches: tuple[str, str]) -> Episode:
    """An episode of (query, text of the passage found) pairs, with an answer at its end."""
    found = [(query, Passage("1", "Title", text)) for query, text in searches]
    turns = [Turn(f"<search>{query}</search>", query, [p], TAGS.result([p], ())) for query, p in found]
    return Episode("?", [], turns=[*turns, Turn("<answer>\\boxed{1853}</answer>")])


@pytest.mark.parametrize(
    ("searches", "expected"),
    [
        pytest.param([], 0, id="no search"),
        pytest.param([("night", NOTHING)], 0, id="given up"),
        pytest.param([("a", NIGHT), ("b", VINCENT)], 0, id="nothing to correct"),
        pytest.param([("night", NOTHING), ("starry night", NIGHT)], 1, id="corrected"),
        pytest.param([("night", NOTHING), ("dark", NOTHING), ("starry night", NIGHT)], 1, id="in two tries, once"),
        pytest.param([("night", NOTHING), ("a", NIGHT), ("dark", NOTHING), ("b", VINCENT)], 2, id="at each hop"),
        pytest.param([("a", NIGHT), ("again", NIGHT), ("b", VINCENT)], 1, id="what was found before does not help"),
        pytest.param([("Starry  night", NOTHING), ("starry NIGHT", NIGHT)], 0, id="the same query but for its look"),
        pytest.param([("b", VINCENT), ("a", NIGHT), ("c", NOTHING), ("d", NIGHT)], 0, id="all was found already"),
    ],
)
def test_a_corrected_query_is_a_helpful_search_after_an_unhelpful_one(
    searches: list[tuple[str, str]], expected: int
) -> None:
    assert corrected_queries(episode(*searches), TWO_HOP) == expected


def test_without_hops_any_gold_answer_will_do_and_only_once() -> None:
    question = Question("q", "Who?", ("Vincent van Gogh", "Van Gogh"))
    searches = [("x", NOTHING), ("y", "Van  GOGH's sunflowers"), ("z", NOTHING), ("w", NIGHT)]
    assert [fact.found for fact in search_facts(episode(*searches), question)] == [(), ("Vincent van Gogh",), (), ()]
    assert corrected_queries(episode(*searches), question) == 1


@pytest.mark.parametrize(
    ("text", "held"),
    [("born in 1853.", 1), ("(1853–1890)", 1), ("11853 lamps", 0), ("In the 1853s", 0), ("<result> 1853 </result>", 1)],
)
def test_an_answer_is_found_as_whole_words(text: str, held: int) -> None:
    question = Question("q", "When?", ("1853",))
    assert corrected_queries(episode(("x", NOTHING), ("y", text)), question) == held


@pytest.mark.parametrize("answers", [("yes",), ("No",), ("",), ()])
def test_what_cannot_be_found_in_a_passage_is_not_sought(answers: tuple[str, ...]) -> None:
    searches = episode(("x", "Dark."), ("y", "Yes, and no."))
    assert corrected_queries(searches, Question("q", "Is it?", answers)) == 0


def test_the_words_around_an_empty_result_are_not_a_finding() -> None:
    empty = Turn("<search>x</search>", "x", [], TAGS.result([], ()))
    helped = Turn(
        "<search>y</search>", "y", [Passage("1", "A passage", "…")], TAGS.result([Passage("1", "A passage", "…")], ())
    )
    assert corrected_queries(Episode("?", [], turns=[empty, helped]), Question("q", "?", ("passage",))) == 1


def test_a_fact_names_its_turn_and_what_it_found() -> None:
    last = search_facts(episode(("night", NOTHING), ("starry night", NIGHT)), TWO_HOP)[-1]
    assert (last.turn, last.query, last.found, last.corrects) == (1, "starry night", ("Vincent van Gogh",), True)
