"""Watching an episode tells what running it gives."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from research.episode.agent import Sampling
from research.episode.streaming import EpisodeDone, EpisodeEvent, SearchDone, TextDelta, stream_episode
from research.episode.trace import trace_of
from research.errors import ServiceError
from research.passages import Passage
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
