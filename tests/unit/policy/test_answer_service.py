"""Places and time of those who ask; the model is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from research.clients import RetrieverClient
from research.config import load_settings
from research.errors import ConfigurationError, ServiceError
from research.schemas import AgentLimits, AnswerResponse
from services.policy.answer.service import AnswerEvent, AnswerService, AnswerTask, BusyError
from services.policy.api.answer import answer_routes
from services.policy.service import PolicyService
from services.web.errors import install_error_handlers
from tests.support.characters import CharacterTokenizer
from tests.support.loop_clock import let_pass
from tests.support.scripted_agent import TURNS, OnePassage, Scripted, agent_for
from tests.support.web_search import searching


def with_answering(
    scenario: Callable[[AnswerService], Awaitable[None]], behaviour: str = "writes", concurrency: int = 1
) -> Scripted:
    policy = Scripted(CharacterTokenizer(), TURNS, behaviour)

    async def main() -> None:
        answering = AnswerService(
            agent_for(policy),
            lambda _: policy,
            CharacterTokenizer(),
            OnePassage(),
            concurrency=concurrency,
            timeout=60,
            list_timeout=60,
            max_question_chars=100,
        )
        async with asyncio.timeout(60):
            await scenario(answering)

    asyncio.run(main())
    return policy


async def until_there_is_room(answering: AnswerService) -> None:
    while True:
        try:
            answering.check_capacity()
        except BusyError:
            await asyncio.sleep(0.001)
        else:
            return


async def first_of(events: AsyncGenerator[AnswerEvent]) -> AnswerEvent:
    return await anext(events)


def test_who_does_not_read_on_keeps_no_place() -> None:
    async def scenario(answering: AnswerService) -> None:
        async with aclosing(answering.stream(AnswerTask("Who?"))) as events:
            await first_of(events)
            with pytest.raises(BusyError):
                answering.check_capacity()
            await until_there_is_room(answering)
            *_, done = [event async for event in events]
            assert isinstance(done, AnswerResponse)
            assert done.answer == "Vincent van Gogh"

    with_answering(scenario)


def test_time_runs_out_for_who_does_not_read_on() -> None:
    async def scenario(answering: AnswerService) -> None:
        asked = AnswerTask("Who?", limits=AgentLimits(timeout=20))
        async with aclosing(answering.stream(asked)) as events:
            await first_of(events)
            let_pass(20)
            await until_there_is_room(answering)
            with pytest.raises(ServiceError, match="no answer within 20 s"):
                _ = [event async for event in events]

    assert with_answering(scenario, "hangs").cancelled == [True]


def test_who_leaves_gives_the_place_back() -> None:
    async def scenario(answering: AnswerService) -> None:
        async with aclosing(answering.stream(AnswerTask("Who?"))) as events:
            await first_of(events)
        await until_there_is_room(answering)

    assert with_answering(scenario, "hangs").cancelled == [True]


def test_of_those_who_come_at_once_no_more_than_the_places_are_taken() -> None:
    async def scenario(answering: AnswerService) -> None:
        watching = [answering.stream(AnswerTask("Who?")) for _ in range(5)]
        firsts = await asyncio.gather(*(first_of(events) for events in watching), return_exceptions=True)
        assert [isinstance(first, BusyError) for first in firsts] == [False, False, True, True, True]
        for events in watching:
            await events.aclose()

    with_answering(scenario, "hangs", concurrency=2)


def test_other_strategies_are_answered_and_watched_the_same_way() -> None:
    async def scenario(answering: AnswerService) -> None:
        asked = AnswerTask("Who?", strategy="naive-rag")
        answered = await answering.answer(asked)
        assert (answered.strategy, answered.usage.searches) == ("naive-rag", 1)
        assert [step.kind for step in answered.trace] == ["search", "result", "answer"]
        (watched,) = [event async for event in answering.stream(asked)]
        assert isinstance(watched, AnswerResponse)
        answering.check_capacity()

    with_answering(scenario)


def test_a_plan_of_its_own_has_no_number_of_searches_to_limit() -> None:
    async def scenario(answering: AnswerService) -> None:
        with pytest.raises(ConfigurationError, match="max_searches"):
            await answering.answer(AnswerTask("Who?", limits=AgentLimits(max_searches=1), strategy="ircot"))

    with_answering(scenario)


def test_a_search_that_is_refused_for_good_is_told_so_that_nobody_asks_again(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "tavily.jsonl").touch()
    policy = Scripted(CharacterTokenizer(), TURNS)

    async def ask(retriever_url: str) -> httpx.Response:
        service = PolicyService(load_settings(environment=False))
        app = FastAPI()
        install_error_handlers(app, whole_app=False)
        app.include_router(answer_routes(service))
        transport = httpx.ASGITransport(app)
        async with (
            RetrieverClient(retriever_url) as retriever,
            httpx.AsyncClient(transport=transport, base_url="http://it") as client,
        ):
            service.answers = AnswerService(
                replace(agent_for(policy), retriever=retriever),
                lambda _: policy,
                CharacterTokenizer(),
                retriever,
                concurrency=1,
                timeout=60,
                list_timeout=60,
                max_question_chars=100,
            )
            return await client.post("/answer", json={"question": "Who?"})

    with searching(tmp_path, "http://127.0.0.1:1", "web.replay=true") as web:
        refused = asyncio.run(ask(str(web.base_url)))
    assert (refused.status_code, refused.json()["error"]) == (424, "service_refused")
    assert "set web.replay=false" in refused.json()["message"]
