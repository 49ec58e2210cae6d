"""An episode as it happens, as a stream of events: text, search results, and the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from research.episode.agent import Episode, Policy, Sampling, SearchAgent
from research.forms.form import PromptForm
from research.forms.tag_parser import TagSpan
from research.passages import Passage


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The model wrote some text."""

    piece: TagSpan


@dataclass(frozen=True, slots=True)
class SearchDone:
    """A search was answered."""

    query: str
    passages: list[Passage]


@dataclass(frozen=True, slots=True)
class EpisodeDone:
    """The episode is over, after `seconds`."""

    episode: Episode
    seconds: float


EpisodeEvent = TextDelta | SearchDone | EpisodeDone


class StreamingPolicy(Policy, Protocol):
    """A policy that can report its text while it writes."""

    def with_callback(self, on_text: Callable[[str], None]) -> Policy:
        """The same policy, which calls `on_text` with each piece of text."""
        ...


async def stream_episode(
    agent: SearchAgent,
    policy: StreamingPolicy,
    question: str,
    sampling: Sampling,
    *,
    limit: float | None = None,
    over: Callable[[], None] = lambda: None,
) -> AsyncGenerator[EpisodeEvent]:
    """Run one episode and yield its events; closing the generator stops generating and searching.

    The episode does not wait for its events to be read.

    Args:
        agent: runs the episode; its own policy is not used.
        policy: samples the turns.
        question: the question to answer.
        sampling: how tokens are drawn.
        limit: seconds for the episode.
        over: called when the episode has ended in any way, whether or not its events are read.

    Raises what `SearchAgent.run` raises, and TimeoutError.
    """
    events: asyncio.Queue[EpisodeEvent | None] = asyncio.Queue()
    watched = _Watched(events, agent.prompt.form)
    listening = replace(agent, policy=policy.with_callback(watched.text))

    async def run() -> None:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(limit), aclosing(listening.steps(question, sampling)) as steps:
                async for episode in steps:
                    watched.step(episode)
            events.put_nowait(EpisodeDone(episode, time.perf_counter() - started))
        finally:
            events.put_nowait(None)

    running = asyncio.create_task(run())
    running.add_done_callback(lambda _: over())
    try:
        while (event := await events.get()) is not None:
            yield event
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class _Watched:
    """Turns text and steps of a growing episode into events."""

    def __init__(self, events: asyncio.Queue[EpisodeEvent | None], form: PromptForm) -> None:
        self._events = events
        self._reader = form.reader()
        self._turns = self._searches = 0

    def text(self, text: str) -> None:
        self._wrote(self._reader.feed(text))

    def step(self, episode: Episode) -> None:
        if len(episode.turns) > self._turns:
            self._turns = len(episode.turns)
            self._wrote(self._reader.close())
        if episode.searches > self._searches:
            self._searches = episode.searches
            turn = episode.turns[-1]
            self._events.put_nowait(SearchDone(turn.query or "", turn.passages))

    def _wrote(self, pieces: list[TagSpan]) -> None:
        for piece in pieces:
            self._events.put_nowait(TextDelta(piece))
