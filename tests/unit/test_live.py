"""Watching an episode tells what running it gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest

from research.config import EpisodeLimits
from research.episode import Finish, Generation, Sampling, SearchAgent
from research.errors import ServiceError
from research.live import Ended, Event, Found, Wrote, watch
from research.passages import Passage
from research.prompts import Prompt
from research.tokens import Tokenizer
from research.trace import trace_of
from tests.unit.characters import CharacterTokenizer

TURNS = [
    "<think>Who painted it?</think>\n<search>Starry Night painter</search>",
    "<think>Van Gogh.</think>\n<answer>\\boxed{Vincent van Gogh}</answer>",
]


@dataclass
class Scripted:
    """Writes given turns, three letters at a time; may be told to stop for ever or to fail in the second."""

    tokenizer: Tokenizer
    turns: list[str]
    behaviour: str = "writes"
    on_text: Callable[[str], None] | None = None
    asked: list[int] = field(default_factory=list)
    cancelled: list[bool] = field(default_factory=list)

    def telling(self, on_text: Callable[[str], None]) -> Scripted:
        return Scripted(self.tokenizer, self.turns, self.behaviour, on_text, self.asked, self.cancelled)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        text = self.turns[len(self.asked)]
        self.asked.append(len(prompt_ids))
        if len(self.asked) == 2 and self.behaviour == "fails":
            raise ServiceError("the engine is gone")
        try:
            for start in range(0, len(text), 3):
                if self.on_text:
                    self.on_text(text[start : start + 3])
                await asyncio.sleep(0)
            if len(self.asked) == 2 and self.behaviour == "hangs":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(True)
            raise
        ids = self.tokenizer.encode(text)
        finish = Finish.SEARCH if text.endswith("</search>") else Finish.EOS
        return Generation(ids, [0.0] * len(ids), ["0"] * len(ids), finish)


class OnePassage:
    async def search(self, query: str, top_k: int) -> list[Passage]:
        return [Passage("7", "The Starry Night", f"found for {query}")]


def agent_for(policy: Scripted) -> SearchAgent:
    limits = EpisodeLimits(prompt="research-small", top_k=1, max_searches=2, max_tokens=2000)
    return SearchAgent(policy, OnePassage(), policy.tokenizer, Prompt("raw", "{question}"), limits, 4000)


async def events_of(policy: Scripted) -> list[Event]:
    return [event async for event in watch(agent_for(policy), policy, "Who?", Sampling(0.0))]


def test_events_tell_the_episode_in_its_order() -> None:
    policy = Scripted(CharacterTokenizer(), TURNS)
    *happened, ended = asyncio.run(events_of(policy))
    assert isinstance(ended, Ended)
    found = next(place for place, event in enumerate(happened) if isinstance(event, Found))
    assert happened[found] == Found(
        "Starry Night painter", [Passage("7", "The Starry Night", "found for Starry Night painter")]
    )
    steps: dict[int, str] = {}
    for event in happened:
        if isinstance(event, Wrote):
            steps[event.piece.step] = steps.get(event.piece.step, "") + event.piece.text
    written = [step.text for step in trace_of(ended.episode) if step.kind != "result"]
    assert list(steps.values()) == written
    before = [event.piece.step for event in happened[:found] if isinstance(event, Wrote)]
    assert set(before) == {0, 1}
    assert ended.episode.answer == "Vincent van Gogh"


def test_what_fails_in_between_is_raised_after_what_was_told() -> None:
    policy = Scripted(CharacterTokenizer(), TURNS, "fails")
    told: list[Event] = []

    async def scenario() -> None:
        async for event in watch(agent_for(policy), policy, "Who?", Sampling(0.0)):
            told.append(event)  # noqa: PERF401 (what came before the error counts)

    with pytest.raises(ServiceError, match="the engine is gone"):
        asyncio.run(scenario())
    assert isinstance(told[-1], Found)


def test_who_stops_watching_stops_the_generation() -> None:
    policy = Scripted(CharacterTokenizer(), TURNS, "hangs")

    async def scenario() -> None:
        async with asyncio.timeout(10), aclosing(watch(agent_for(policy), policy, "Who?", Sampling(0.0))) as events:
            async for event in events:
                if isinstance(event, Wrote) and event.piece.kind == "answer":
                    break

    asyncio.run(scenario())
    assert policy.cancelled == [True]
