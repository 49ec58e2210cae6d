"""Watching an episode tells what running it gives."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from research.episode.agent import Sampling
from research.episode.streaming import EpisodeDone, EpisodeEvent, SearchDone, TextDelta, stream_episode
from research.episode.tokenizer import HuggingFaceTokenizer
from research.episode.trace import trace_of
from research.errors import ServiceError
from research.passages import Passage
from research.prompts import load_prompt
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.characters import CharacterTokenizer
from tests.support.scripted_agent import TURNS, Scripted, agent_for


async def events_of(policy: Scripted) -> list[EpisodeEvent]:
    return [event async for event in stream_episode(agent_for(policy), policy, "Who?", Sampling(0.0))]


def test_events_tell_the_episode_in_its_order() -> None:
    policy = Scripted(CharacterTokenizer(), TURNS)
    *happened, ended = asyncio.run(events_of(policy))
    assert isinstance(ended, EpisodeDone)
    found = next(place for place, event in enumerate(happened) if isinstance(event, SearchDone))
    assert happened[found] == SearchDone(
        "Starry Night painter", [Passage("7", "The Starry Night", "found for Starry Night painter")]
    )
    steps: dict[int, str] = {}
    for event in happened:
        if isinstance(event, TextDelta):
            steps[event.piece.step] = steps.get(event.piece.step, "") + event.piece.text
    written = [step.text for step in trace_of(ended.episode) if step.kind != "result"]
    assert list(steps.values()) == written
    before = [event.piece.step for event in happened[:found] if isinstance(event, TextDelta)]
    assert set(before) == {0, 1}
    assert ended.episode.answer == "Vincent van Gogh"


def test_tool_calls_are_told_by_their_queries_and_the_answer_once_it_is_one() -> None:
    call = '<think>Who painted it?</think>\n\n<tool_call>\n{"name": "search", "arguments": {"query": "the painter"}}\n'
    turns = [f"{call}</tool_call>", "<think>Van Gogh.</think>\n\nIt was \\boxed{Vincent van Gogh}."]
    policy = Scripted(HuggingFaceTokenizer(byte_tokenizer()), turns)
    agent = replace(agent_for(policy), prompt=load_prompt("research-tools"), context_length=9000)

    async def events() -> list[EpisodeEvent]:
        return [event async for event in stream_episode(agent, policy, "Who?", Sampling(0.0))]

    *happened, ended = asyncio.run(events())
    assert isinstance(ended, EpisodeDone)
    assert ended.episode.answer == "Vincent van Gogh"
    told: list[tuple[str, str]] = []
    for event in happened:
        assert not isinstance(event, EpisodeDone)
        told.append((event.piece.kind, event.piece.text) if isinstance(event, TextDelta) else ("found", event.query))
    assert [part for part in told if part[0] != "think"] == [
        ("search", "the painter"),
        ("found", "the painter"),
        ("answer", "It was \\boxed{Vincent van Gogh}."),
    ]
    thoughts = "".join(text for kind, text in told if kind == "think")
    assert thoughts == "Who painted it?Van Gogh."


def test_what_fails_in_between_is_raised_after_what_was_told() -> None:
    policy = Scripted(CharacterTokenizer(), TURNS, "fails")
    told: list[EpisodeEvent] = []

    async def scenario() -> None:
        async for event in stream_episode(agent_for(policy), policy, "Who?", Sampling(0.0)):
            told.append(event)  # noqa: PERF401 (what came before the error counts)

    with pytest.raises(ServiceError, match="the engine is gone"):
        asyncio.run(scenario())
    assert isinstance(told[-1], SearchDone)


def test_who_stops_watching_stops_the_generation() -> None:
    policy = Scripted(CharacterTokenizer(), TURNS, "hangs")

    async def scenario() -> None:
        async with (
            asyncio.timeout(10),
            aclosing(stream_episode(agent_for(policy), policy, "Who?", Sampling(0.0))) as events,
        ):
            async for event in events:
                if isinstance(event, TextDelta) and event.piece.kind == "answer":
                    break

    asyncio.run(scenario())
    assert policy.cancelled == [True]
