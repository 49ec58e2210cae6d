"""A service that is busy is waited for as long as it says, costs no episode, and every wait ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client import REGISTRY

from research.clients import PolicyClient, RetrieverClient
from research.episode.agent import GREEDY, Sampling
from research.errors import ServiceBusyError, ServiceError, TrainingError
from research.http.tries import retry_after
from research.passages import Passage
from research.retrievers import Retrievers
from research.strategies.chat import Message
from research.strategies.openai_chat import OpenAIChat
from services.trainer.evaluation.evaluator import BEFORE
from tests.support.characters import CharacterTokenizer
from tests.support.policy_server import PolicyServer
from tests.support.raw_server import Asked, RawServer, answer
from tests.unit.episode.test_episode import SEARCH
from tests.unit.http.test_nonsense import FOUND, TURN
from tests.unit.trainer.test_faults import QUESTIONS, Trainer, evaluator, train

Result = TypeVar("Result")
PARIS = [Passage("1", "Paris", "A city.")]


def busy(times: int, then: bytes, status: int = 429, after: str = "1") -> Callable[[Asked], bytes]:
    refusal = answer({"error": "busy"}, status, Retry_After=after)
    return lambda asked: refusal if asked.number < times else then


def against(server: RawServer, work: Callable[[str], Awaitable[Result]]) -> tuple[Result, float]:
    async def run() -> tuple[Result, float]:
        async with server.serving() as url:
            begun = time.monotonic()
            return await work(url), time.monotonic() - begun

    return asyncio.run(run())


def retried(service: str, reason: str) -> float:
    return REGISTRY.get_sample_value("research_client_retries_total", {"service": service, "reason": reason}) or 0.0


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_waited_for_as_long_as_it_says_and_is_no_failure(status: int) -> None:
    async def search(url: str) -> list[Passage]:
        async with RetrieverClient(url, retries=0) as client:
            return await client.search("q", 5)

    before, server = retried("retriever", "busy"), RawServer(busy(2, answer(FOUND), status))
    found, seconds = against(server, search)
    assert found == PARIS
    assert len(server.asked) == 3
    assert 2.0 <= seconds < 10
    assert retried("retriever", "busy") - before == 2


def test_a_503_that_names_no_time_is_a_fault() -> None:
    async def search(url: str) -> None:
        async with RetrieverClient(url, retries=0) as client:
            with pytest.raises(ServiceError) as caught:
                await client.search("q", 5)
            assert (caught.value.status, caught.value.reason) == (503, "http_503")

    server = RawServer(lambda _: answer({}, 503))
    against(server, search)
    assert len(server.asked) == 1


@pytest.mark.parametrize("after", ["1000000", "0", "soon", "-5", ""])
def test_every_wait_ends_whatever_the_service_says(after: str) -> None:
    async def search(url: str) -> None:
        async with RetrieverClient(url, retries=4, busy_timeout=1.0) as client:
            with pytest.raises(ServiceBusyError, match="answered 429"):
                await asyncio.wait_for(client.search("q", 5), 40)

    server = RawServer(busy(10**9, b"", after=after))
    _, seconds = against(server, search)
    assert 0.9 < seconds < 30
    assert len(server.asked) < 30, "it asks without a pause"


def test_who_is_busy_after_a_long_turn_is_waited_for_from_then_on() -> None:
    """As a policy that is stopped in the middle of a turn."""

    def reply(asked: Asked) -> bytes:
        if asked.number:
            return answer(FOUND)
        time.sleep(1.2)  # longer than a client waits for who is busy
        return answer({"error": "stopping"}, 503, Retry_After="1")

    async def search(url: str) -> list[Passage]:
        async with RetrieverClient(url, timeout=10, retries=0, busy_timeout=1.0) as client:
            return await client.search("q", 5)

    server = RawServer(reply)
    assert against(server, search)[0] == PARIS
    assert len(server.asked) == 2


def test_who_is_busy_again_after_a_fault_is_waited_for_anew() -> None:
    refusal = answer({"error": "busy"}, 429, Retry_After="1")

    def reply(asked: Asked) -> bytes:
        if asked.number == 1:
            time.sleep(1.2)
        return [refusal, answer({}, 500), refusal, answer(FOUND)][asked.number]

    async def search(url: str) -> list[Passage]:
        async with RetrieverClient(url, timeout=10, retries=1, busy_timeout=1.1) as client:
            return await client.search("q", 5)

    assert against(RawServer(reply), search)[0] == PARIS


def test_a_client_waits_no_longer_than_for_an_answer_unless_told() -> None:
    async def search(url: str) -> None:
        async with RetrieverClient(url, timeout=0.5) as client:
            with pytest.raises(ServiceBusyError):
                await asyncio.wait_for(client.search("q", 5), 10)

    against(RawServer(busy(10**9, b"", after="50")), search)


def test_both_forms_are_read_and_nonsense_is_none() -> None:
    def at(when: datetime) -> float | None:
        return retry_after({"Retry-After": format_datetime(when, usegmt=True)})

    now = datetime.now(UTC)
    assert 2900 < (at(now + timedelta(seconds=3000)) or 0) <= 3000
    assert at(now - timedelta(days=1)) == 0
    # A date that says it has no zone is in UTC.
    unzoned = f"{now + timedelta(seconds=3000):%a, %d %b %Y %H:%M:%S} -0000"
    assert 2900 < (retry_after({"Retry-After": unzoned}) or 0) <= 3000
    assert retry_after({"Retry-After": " 7 "}) == 7
    assert retry_after({"Retry-After": "9" * 5000}) is not None
    for nonsense in (
        "",
        "soon",
        "-1",
        "1.5",
        "1e9",
        "nan",
        "٣",
        "Wed, 99 Foo 2026 99:99:99 GMT",
        "Mon, 01 Jan 99999",
        ",",
    ):
        assert retry_after({"Retry-After": nonsense}) is None, nonsense
    assert retry_after({}) is None


def test_several_retrievers_that_are_all_busy_are_waited_for_the_shortest_time() -> None:
    async def run() -> tuple[list[Passage], int]:
        first, second = RawServer(busy(1, answer(FOUND), after="1")), RawServer(busy(10**9, b"", after="50"))
        async with AsyncExitStack() as opened:
            urls = [await opened.enter_async_context(each.serving()) for each in (first, second)]
            retrievers = await opened.enter_async_context(Retrievers(urls, retries=0))
            return await asyncio.wait_for(retrievers.search("q", 5), 20), len(first.asked)

    assert asyncio.run(run()) == (PARIS, 2)


def test_an_endpoint_that_limits_its_rate_is_waited_for() -> None:
    said = {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}]}

    async def ask(url: str) -> str:
        async with OpenAIChat(url, "m", retries=0) as chat:
            return (await chat.complete([Message("user", "Q")], 8, GREEDY)).text

    assert against(RawServer(busy(2, answer(said))), ask)[0] == "Yes"


def test_a_turn_has_its_time_from_when_the_server_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("research.pace._UNKNOWN_SECONDS", 0.0)  # so it has `timeout`, less than it waits

    async def ask(url: str) -> list[int]:
        async with PolicyClient(url, timeout=2.5, retries=0, busy_timeout=60) as client:
            return (await client.generate([1], 8, Sampling())).token_ids

    refusal, taken = answer({}, 429, Retry_After="3"), answer({"choices": [TURN]})
    asked: list[str] = []

    def reply(request: Asked) -> bytes:
        if "readyz" in request.line:
            return answer({})
        asked.append(request.line)
        return refusal if len(asked) == 1 else taken

    assert against(RawServer(reply), ask)[0] == [5, 6]
    assert len(asked) == 2


def searching(trainer: Trainer, url: str, busy_timeout: float) -> RetrieverClient:
    client = RetrieverClient(url, retries=0, busy_timeout=busy_timeout)
    trainer.agent = trainer.rollouts.agent = replace(trainer.agent, retriever=client)
    return client


def test_a_busy_retriever_costs_no_episode(tmp_path: Path) -> None:
    policy = PolicyServer(search=CharacterTokenizer().encode(SEARCH))

    async def work(trainer: Trainer) -> None:
        # Busier than an episode has tries, and then it answers.
        async with RawServer(busy(30, answer(FOUND))).serving() as url, searching(trainer, url, 60):
            trainer.rollouts.service_retries = 0
            groups = await trainer.rollouts.groups(1, QUESTIONS[:3], 2, lambda: None)
        assert [len(group.members) for group in groups] == [2, 2, 2]
        assert trainer.rollouts.infra_errors == 0

    train(tmp_path, [policy], work)


def test_a_retriever_that_stays_busy_ends_the_run_by_its_name(tmp_path: Path) -> None:
    policy = PolicyServer(search=CharacterTokenizer().encode(SEARCH))

    async def work(trainer: Trainer) -> None:
        async with RawServer(busy(10**9, b"")).serving() as url, searching(trainer, url, 1):
            with pytest.raises(TrainingError, match=r"answered 429.*outage_timeout"):
                await trainer.rollouts.groups(1, QUESTIONS[:1], 2, lambda: None)
            with pytest.raises(TrainingError, match=r"answered 429.*outage_timeout"):
                await evaluator(tmp_path, trainer, QUESTIONS[:1]).evaluate(BEFORE)

    train(tmp_path, [policy], work)


def test_a_run_survives_nonsense_as_a_fault_of_the_retriever(tmp_path: Path) -> None:
    policy = PolicyServer(search=CharacterTokenizer().encode(SEARCH))

    async def work(trainer: Trainer) -> None:
        said = [
            answer({}),
            answer([]),
            answer(b"<html>", Content_Type="text/html"),
            answer(FOUND, Content_Length="9999"),
        ]
        server = RawServer(lambda asked: said[asked.number] if asked.number < len(said) else answer(FOUND))
        async with server.serving() as url, searching(trainer, url, 1):
            trainer.rollouts.service_retries = 4
            [group] = await trainer.rollouts.groups(1, QUESTIONS[:1], 1, lambda: None)
        assert len(group.members) == 1
        assert trainer.rollouts.infra_errors == len(said)

    train(tmp_path, [policy], work)
