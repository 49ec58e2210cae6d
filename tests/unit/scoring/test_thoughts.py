"""What an episode's own text says of the model: edge cases, and what holds for any text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.episode.agent import Episode, StopReason, Turn
from research.episode.search_analysis import served_all
from research.passages import Passage
from research.questions import Hop, Question
from research.scoring.thoughts import avoids_answer, is_thoughtless, plans, repeated_queries, repeated_share


def episode(*texts: str, stop_reason: StopReason = StopReason.ANSWERED) -> Episode:
    return Episode("?", [], turns=[Turn(text) for text in texts], stop_reason=stop_reason)


def searching(*queries: str, first: str = "") -> Episode:
    turns = [Turn(f"<search>{query}</search>", query) for query in queries]
    turns[0].text = first + turns[0].text
    return Episode("?", [], turns=[*turns, Turn("<answer>\\boxed{x}</answer>")])


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        pytest.param([], 0, id="nothing written"),
        pytest.param(["a b c", "a b c"], 0, id="too short for a run"),
        pytest.param(["a b c d e"], 0, id="no run twice"),
        pytest.param(["a b c d", "A  b\nC d"], 1 / 2, id="again in another turn"),
        pytest.param(["a b c d a b c d"], 1 / 5, id="again in the same turn"),
        pytest.param(["a b", "c d", "a b", "c d"], 0, id="runs lie within a turn"),
        pytest.param(["a " * 13], 9 / 10, id="a loop"),
        pytest.param(["!" * 13], 9 / 10, id="a loop of marks"),
        pytest.param(["<think>a b</think><search>c</search>"] * 9, 0, id="tags are no words"),
        pytest.param(["我需要找到", "我需要找到"], 1 / 2, id="Chinese"),
    ],
)
def test_what_is_repeated(texts: list[str], share: float) -> None:
    assert repeated_share(episode(*texts)) == pytest.approx(share)


def test_the_words_around_the_query_of_a_call_are_no_repetition() -> None:
    queries = ["who painted it", "where was he born", "when did that town burn down", "who ruled it then"]
    called = (json.dumps({"name": "search", "arguments": {"query": query}}) for query in queries)
    ours = [*(f"<think>so</think><search>{query}</search>" for query in queries), "<answer>\\boxed{x}</answer>"]
    calls = [*(f"<think>so</think>\n<tool_call>\n{call}\n</tool_call>" for call in called), "\\boxed{x}"]
    for form, texts in (("tags", ours), ("tool_calls", calls)):
        once, again = ([Turn(text) for text in (*texts, *more)] for more in ((), texts[:2]))
        assert repeated_share(Episode("?", [], turns=once, form=form)) == 0
        assert repeated_share(Episode("?", [], turns=again, form=form)) == pytest.approx(3 / 14)


@given(st.lists(st.text("ab !<"), max_size=5))
def test_a_share_is_at_least_0_and_below_1_and_a_turn_again_does_not_lower_it(texts: list[str]) -> None:
    once, again = repeated_share(episode(*texts)), repeated_share(episode(*texts, *texts))
    assert 0 <= once <= again < 1


@given(st.lists(st.text("abcdefg ", max_size=30), min_size=1, max_size=4))
def test_the_order_of_turns_does_not_matter(texts: list[str]) -> None:
    assert repeated_share(episode(*texts)) == repeated_share(episode(*reversed(texts)))


@pytest.mark.parametrize(
    ("text", "thoughtless"),
    [
        ("", True),
        ("I need to find it. <search>q</search>", True),
        ("<think></think><search>a query of many words</search>", True),
        ("<think> ... </think>", True),
        ("<think>find it</think>", True),
        ("<think>find it now</think>", False),
        ("<think>find</think> and <think>it now</think>", False),
        ("<think>what is never closed", False),
        ("<think><search>a query of many words</search>", True),
        ("<think>我需要找到</think>", False),
    ],
)
def test_a_turn_without_a_thought(text: str, thoughtless: bool) -> None:
    assert is_thoughtless(Episode("?", []), Turn(text)) is thoughtless


def test_a_plan_is_a_thought_before_the_first_search() -> None:
    assert plans(searching("q", first="<think>what to find first</think>")) is True
    assert plans(searching("q", first="<think>well</think>")) is False
    late = Episode("?", [], turns=[Turn("<search>q</search><think>what to find first</think>", "q")])
    assert plans(late) is False
    assert plans(episode("<think>I know it by heart</think><answer>\\boxed{x}</answer>")) is None


@pytest.mark.parametrize(
    ("text", "stop_reason", "avoided"),
    [
        ("<answer>\\boxed{x}</answer>", StopReason.ANSWERED, False),
        ("<think>I do not know.</think>", StopReason.ANSWERED, True),
        ("<answer>x</answer>", StopReason.ANSWERED, True),
        ("<answer>\\boxed{}</answer>", StopReason.ANSWERED, True),
        ("<think>I", StopReason.TOKEN_LIMIT, False),
        ("<think>I", StopReason.TIME_LIMIT, False),
        ("<search>q</search>", StopReason.SEARCH_LIMIT, False),
        ("<search></search>", StopReason.MALFORMED_SEARCH, False),
    ],
)
def test_an_answer_is_avoided_only_by_ending_without_one(text: str, stop_reason: StopReason, avoided: bool) -> None:
    assert avoids_answer(episode(text, stop_reason=stop_reason)) is avoided


def test_queries_asked_again() -> None:
    assert repeated_queries(searching("Paris", "paris ", "the  river", "The river", "PARIS")) == 3
    assert repeated_queries(searching("Paris")) == 0
    assert repeated_queries(episode("no search")) == 0


def served(*titles: str) -> Episode:
    return Episode("?", [], turns=[Turn("", "q", [Passage("1", title, "…")]) for title in titles] + [Turn("")])


def test_all_is_served_once_each_supporting_title_was() -> None:
    hops = (Hop("q", "g", "Night", "a"), Hop("q", "g", "Vincent", "b"), Hop("q", "g", "Night", "c"))
    question = Question("q", "?", ("b",), hops=hops)
    assert served_all(served("Vincent", "Day", "Night"), question) is True
    assert served_all(served("Night", "Night"), question) is False
    assert served_all(served(), question) is False
    assert served_all(served("Night"), Question("q", "?", ("b",), supporting=("Night",))) is True
    assert served_all(served("Night"), Question("q", "?", ("b",))) is None
