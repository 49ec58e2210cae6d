"""A turn that takes long, and a server that is gone, over real HTTP: the one is cut, the other is an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from research import pace
from research.clients import PolicyClient
from research.episode.agent import Episode, Finish, Generation, Sampling, SearchAgent, StopReason
from research.errors import ServiceError
from research.pace import Pace
from research.passages import Passage
from research.prompts import Prompt
from research.settings import EpisodeConfig
from tests.support.characters import CharacterTokenizer, Shelf
from tests.support.policy_server import PolicyServer

PATIENCE = 1.0
Result = TypeVar("Result")


def ask(server: PolicyServer, work: Callable[[PolicyClient], Awaitable[Result]], retries: int = 4) -> Result:
    async def run() -> Result:
        async with server.serving(), PolicyClient(server.url, timeout=PATIENCE, retries=retries) as client:
            return await work(client)

    return asyncio.run(run())


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_UNKNOWN_SECONDS", 0.02)


def test_a_turn_may_take_longer_than_the_time_without_a_sign_of_life() -> None:
    server = PolicyServer(seconds_per_token=0.25, tokens=10)
    generation = ask(server, lambda client: client.generate([7], 64, Sampling()))
    assert (generation.finish, len(generation.token_ids)) == (Finish.EOS, 10)
    assert len(server.prompts) == 1
    assert server.checks >= 2


def test_a_turn_that_does_not_end_in_its_time_is_asked_for_once_and_keeps_its_tokens(short_deadlines: None) -> None:
    server = PolicyServer(seconds_per_token=0.1, tokens=10_000)
    generation = ask(server, lambda client: client.generate([7], 30, Sampling()))  # it gets 1 s and 30 times .02 s
    assert generation.finish is Finish.TIME
    assert 0 < len(generation.token_ids) < 30
    assert len(generation.logprobs) == len(generation.versions) == len(generation.token_ids)
    assert len(server.prompts) == len(server.ended) == 1


def test_such_an_episode_is_truncated_and_can_be_scored(short_deadlines: None) -> None:
    async def episode(client: PolicyClient) -> Episode:
        shelf = Shelf([Passage("7", "Paris", "The capital.")])
        limits = EpisodeConfig(max_tokens=30)
        agent = SearchAgent(client, shelf, CharacterTokenizer(), Prompt("none", "rules"), limits, 4000)
        return await agent.run("Q?", Sampling())

    played = ask(PolicyServer(seconds_per_token=0.1, tokens=10_000), episode)
    assert played.stop_reason is StopReason.TIME_LIMIT
    assert played.stop_reason.truncated
    assert played.stop_reason.cut_off
    assert played.format_fault == "the episode did not end by itself"
    assert played.sampled_tokens > 0


def test_a_server_that_hangs_is_an_outage_and_not_a_long_turn() -> None:
    with pytest.raises(ServiceError, match="does not answer"):
        ask(PolicyServer(hangs=True), lambda client: client.generate([7], 10_000, Sampling()))


def test_a_turn_without_any_token_in_its_time_is_no_turn(short_deadlines: None) -> None:
    server = PolicyServer(seconds_per_token=10.0)
    with pytest.raises(ServiceError, match="no token in the whole time"):
        ask(server, lambda client: client.generate([7], 10, Sampling()))


def test_a_server_that_dies_is_an_outage() -> None:
    async def run() -> None:
        server = PolicyServer(seconds_per_token=0.05, tokens=10_000)
        async with PolicyClient(server.url, timeout=PATIENCE, retries=0) as client:
            async with server.serving():
                asked = asyncio.create_task(client.generate([7], 10_000, Sampling()))
                await server.asked()
            with pytest.raises(ServiceError, match="cannot be reached"):
                await asked

    asyncio.run(run())


def test_what_is_under_way_can_be_cut() -> None:
    server = PolicyServer(seconds_per_token=0.01, tokens=10_000)

    async def cut(client: PolicyClient) -> list[Generation]:
        asked = [asyncio.create_task(client.generate([number], 10_000, Sampling())) for number in range(3)]
        await server.asked(3)
        await asyncio.sleep(0.05)
        await client.cut()
        return await asyncio.gather(*asked)

    generations = ask(server, cut)
    assert [generation.finish for generation in generations] == [Finish.TIME] * 3
    assert all(generation.token_ids for generation in generations)


def test_an_abort_that_nobody_asked_for_is_a_fault() -> None:
    server = PolicyServer(seconds_per_token=0.01, tokens=10_000)

    async def run(client: PolicyClient) -> None:
        asked = asyncio.create_task(client.generate([7], 10_000, Sampling()))
        await server.asked()
        server.ended |= {f"generate-tokens-{name}" for name in client._under_way}
        with pytest.raises(ServiceError, match="shutting down"):
            await asked

    ask(server, run)


def test_the_time_of_a_turn_follows_from_its_length_and_the_pace_of_others() -> None:
    shown = Pace(10.0)
    assert shown.seconds_for(1000) == 10.0 + 1000 * pace._UNKNOWN_SECONDS
    for _ in range(pace._BELIEVED):
        shown.learn(4, 400.0)  # too short to tell
    for seconds in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 800.0):
        shown.learn(100, seconds)
    assert shown.seconds_for(1000) == pytest.approx(10.0 + 1000 * 0.045 * pace._SLACK)
