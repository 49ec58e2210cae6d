"""What each strategy asks of model and retriever, and what it makes of it; both are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.episode.agent import Sampling, StopReason
from research.errors import ContextFullError
from research.passages import Passage, ScoredPassage
from research.schemas import StrategyName
from research.strategies import BASELINES, STRATEGIES, BaselineStrategy
from research.strategies.chat import Completion, Message
from research.strategies.outcome import Outcome
from research.strategies.sentences import first_sentence

QUESTION = "Who wrote Dr. No?"


@dataclass
class Scripted:
    """Writes given texts, and finds given passages by query."""

    texts: list[str]
    found: dict[str, list[ScoredPassage]] = field(default_factory=dict)
    cut: bool = False
    asked: list[list[Message]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    stops: list[Sequence[str]] = field(default_factory=list)

    async def complete(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Completion:
        assert (max_tokens, sampling.temperature) == (64, 0.0)
        self.asked.append(list(messages))
        self.stops.append(stop)
        return Completion(self.texts[len(self.asked) - 1], self.cut, 10, 3, ["7"])

    async def search_scored(self, query: str, top_k: int) -> list[ScoredPassage]:
        assert top_k == 2
        self.queries.append(query)
        return self.found.get(query, [])


def passage(name: str, score: float) -> ScoredPassage:
    return ScoredPassage(Passage(name, f"Title {name}", f"Text of {name}."), score)


def run(name: str, script: Scripted) -> Outcome:
    strategy = BaselineStrategy(BASELINES[name], script, script, top_k=2, max_tokens=64)
    return asyncio.run(strategy.answer(QUESTION, Sampling(0.0)))


def test_naive_generation_searches_nothing() -> None:
    script = Scripted([" Ian Fleming "])
    outcome = run("naive", script)
    assert (outcome.answer, outcome.searches, script.queries) == ("Ian Fleming", 0, [])
    system, user = script.asked[0]
    assert "do not output any other words" in system.content
    assert user.content == f"Question: {QUESTION}"
    assert (outcome.prompt_tokens, outcome.sampled_tokens, outcome.versions) == (10, 3, ["7"])


def test_naive_rag_searches_once_with_the_question() -> None:
    script = Scripted(["Ian Fleming"], {QUESTION: [passage("a", 0.9), passage("b", 0.8)]})
    outcome = run("naive-rag", script)
    assert script.queries == [QUESTION]
    assert "Doc 1(Title: Title a) Text of a.\nDoc 2(Title: Title b) Text of b." in script.asked[0][0].content
    assert [step.kind for step in outcome.trace] == ["search", "result", "answer"]
    assert [each.id for each in outcome.passages] == ["a", "b"]


def test_iter_retgen_asks_with_the_former_answer_and_with_fresh_documents() -> None:
    found = {QUESTION: [passage("a", 1)], f"{QUESTION} one": [passage("b", 1)], f"{QUESTION} two": [passage("a", 1)]}
    script = Scripted(["one", "two", "three"], found)
    outcome = run("iter-retgen", script)
    assert script.queries == [QUESTION, f"{QUESTION} one", f"{QUESTION} two"]
    assert outcome.answer == "three"
    assert "Title a" not in script.asked[1][0].content
    assert [each.id for each in outcome.passages] == ["a", "b"]
    assert outcome.searches == 3


def test_ircot_thinks_a_sentence_searches_with_it_and_ends_at_the_phrase() -> None:
    found = {
        QUESTION: [passage("a", 0.9), passage("b", 0.2)],
        "Dr. No is a novel.": [passage("b", 0.95), passage("c", 0.5)],
    }
    script = Scripted(["Dr. No is a novel. It was read widely.", "So the answer is: Ian Fleming."], found)
    outcome = run("ircot", script)
    assert script.queries == [QUESTION, "Dr. No is a novel."]
    assert outcome.answer == "Ian Fleming"
    first, second = (asked[1].content for asked in script.asked)
    assert first.index("Title b") < first.index("Title a"), "the best stands last"
    assert [second.index(f"Title {name}") for name in "cab"] == sorted(second.index(f"Title {name}") for name in "cab")
    assert second.endswith(f"Question: {QUESTION}\nThought: Dr. No is a novel.")


def test_ircot_gives_up_after_five_rounds_or_at_an_empty_thought() -> None:
    script = Scripted([f"Thought number {number}." for number in range(9)])
    assert run("ircot", script).answer == " ".join(f"Thought number {number}." for number in range(5))
    assert len(script.asked) == 5
    assert run("ircot", Scripted([""])).answer is None


def test_an_answer_that_was_cut_says_so() -> None:
    assert run("naive", Scripted(["Ian"], cut=True)).stop_reason is StopReason.TOKEN_LIMIT


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Dr. No was written in 1958. It sold well.", "Dr. No was written in 1958."),
        ("J. R. R. Tolkien wrote it. He lived in Oxford.", "J. R. R. Tolkien wrote it."),
        ("It cost 3.5 million. More came.", "It cost 3.5 million."),
        ('He said "yes." Then he left.', 'He said "yes."'),
        ("St. Petersburg, e.g. its centre, is old! Is it?", "St. Petersburg, e.g. its centre, is old!"),
        ("no end", "no end"),
        ("  One.  ", "One."),
        ("", ""),
    ],
)
def test_a_sentence_ends_where_people_end_it(text: str, first: str) -> None:
    assert first_sentence(text) == first


@given(st.text())
def test_the_first_sentence_begins_the_text(text: str) -> None:
    first = first_sentence(text)
    assert text.strip().startswith(first)
    assert bool(first) == bool(text.strip())


def test_the_wire_names_every_strategy() -> None:
    assert set(get_args(StrategyName)) == set(STRATEGIES)


def test_a_context_that_is_full_is_an_outcome_and_no_crash() -> None:
    class Full(Scripted):
        async def complete(
            self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
        ) -> Completion:
            raise ContextFullError("the prompt takes 848 tokens of a context of 768")

    outcome = run("naive-rag", Full([]))
    assert (outcome.answer, outcome.stop_reason, outcome.searches) == (None, StopReason.TOKEN_LIMIT, 1)
