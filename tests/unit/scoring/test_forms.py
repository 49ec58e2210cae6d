"""What is scored of an episode means the same in each form."""

from __future__ import annotations

import pytest

from research.episode.agent import Episode, Turn
from research.forms import form_named
from research.passages import Passage
from research.questions import Question
from research.scoring.reward import score
from research.scoring.signs import Row, signs_of
from research.scoring.thoughts import is_thoughtless, plans
from research.scoring.turns import is_void
from services.trainer.sft.writing import writing_of

QUESTION = Question("1", "?", ("Paris",), kind="two_hop", supporting=("France",))
CALL = '<tool_call>{"name": "search", "arguments": {"query": "a query of many words"}}</tool_call>'


def row(form: str, thought: str, *queries: str) -> Row:
    """One that was written in this form: searches, then the answer."""
    writing = writing_of(form_named(form))
    turns = [Turn(writing.search(thought, query), query, [Passage("1", query, "…")]) for query in queries]
    episode = Episode("?", [], turns=[*turns, Turn(writing.answer(thought, "Paris"))], form=form)
    return QUESTION, episode, score(episode.answer, QUESTION.answers, episode.format_fault)


def test_the_same_episodes_have_the_same_signs_in_tags_and_in_tool_calls() -> None:
    tags, calls = (
        [
            row(form, "I have to find out more", "Spain", "the kingdom of France", "the kingdom of France"),
            row(form, "so", "France", "the old capital of Spain"),
            row(form, "I know it by heart"),
        ]
        for form in ("tags", "tool_calls")
    )
    assert signs_of(calls) == signs_of(tags)
    assert [each[2] for each in calls] == [each[2] for each in tags]
    assert 0 < signs_of(calls)["repetition"] < 1 / 2
    assert signs_of(calls)["empty_thoughts"] == 3 / 8


@pytest.mark.parametrize(
    ("text", "thoughtless", "plan", "void"),
    [
        ("", True, False, True),
        (CALL, True, False, False),
        (f"<think>find it now</think>\n{CALL}", False, True, False),
        (f"{CALL}<think>find it now</think>", False, False, False),
        (f"<think>so {CALL}", True, False, True),
        (f"<think>find it now</think>{CALL}{CALL}", False, True, True),
        (f"<think>find it now</think>{CALL.replace('query', 'text', 1)}", False, True, True),
        ("<think>find it now</think>I do not know.", False, True, True),
        ("<think>find it now</think>\\boxed{Paris}", False, True, False),
    ],
)
def test_a_message_with_tool_calls(text: str, thoughtless: bool, plan: bool, void: bool) -> None:
    turn = Turn(text, "asked")
    episode = Episode("?", [], turns=[turn], form="tool_calls")
    assert (is_thoughtless(episode, turn), plans(episode), is_void(episode, turn)) == (thoughtless, plan, void)
