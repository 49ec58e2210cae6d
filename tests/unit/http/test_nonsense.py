"""Whatever a service answers, its clients return what they promise or raise ServiceError, and in their time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.clients import PolicyAdmin, PolicyClient, RetrieverClient
from research.episode.agent import GREEDY, Generation, Sampling
from research.errors import ServiceError
from research.http import service
from research.http.tries import RETRIES
from research.passages import Passage
from research.schemas import WeightsRequest
from research.strategies.chat import Message
from research.strategies.completions import CompletionsPolicy
from research.strategies.openai_chat import OpenAIChat
from tests.support.raw_server import RawServer, answer

HIT = {"id": "1", "title": "Paris", "text": "A city.", "score": 0.5}
FOUND = {"index": "x", "revision": "r", "results": [[HIT]]}
LONG = answer(json.dumps(FOUND).encode() + b" " * 2000)
TURN = {
    "token_ids": [5, 6],
    "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1}]},
    "weight_versions": [{"start": 0, "end": 2, "version": "3"}],
    "finish_reason": "stop",
    "stop_reason": None,
}
ONE = [Message("user", "Q")]
Ask = Callable[[str], Awaitable[Any]]


async def search(url: str) -> list[Passage]:
    async with RetrieverClient(url, timeout=5, retries=0) as client:
        return await client.search("q", 2)


async def served(url: str) -> Any:
    async with RetrieverClient(url, timeout=5, retries=0) as client:
        return await client.served()


async def generate(url: str) -> Generation:
    async with PolicyClient(url, timeout=5, retries=0) as client:
        return await client.generate([1], 8, Sampling())


async def update(url: str) -> Any:
    async with PolicyAdmin(url, token="t", timeout=5, retries=0) as admin:
        return await admin.update_weights(WeightsRequest(path="x", version="1"))


async def weights(url: str) -> Any:
    async with PolicyAdmin(url, token="t", timeout=5, retries=0) as admin:
        return await admin.weights()


async def digests(url: str) -> Any:
    async with PolicyAdmin(url, token="t", timeout=5, retries=0) as admin:
        return await admin.digests()


async def chat(url: str) -> Any:
    async with OpenAIChat(url, "m", timeout=5, retries=0) as client:
        return await client.complete(ONE, 8, GREEDY)


async def complete(url: str) -> Any:
    async with CompletionsPolicy(url, "m", timeout=5, retries=0) as client:
        return await client.generate([1], 8, Sampling())


CLIENTS: dict[str, Ask] = {
    each.__name__: each for each in (search, served, generate, update, weights, digests, chat, complete)
}


def told(ask: Ask, reply: bytes) -> Any:
    async def run() -> Any:
        async with RawServer(lambda _: reply).serving() as url:
            return await ask(url)

    return asyncio.run(run())


DEEP = b'{"results":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
NO_ANSWERS = {
    "empty": answer(b""),
    "null": answer(None),
    "a list": answer([]),
    "a number": answer(7),
    "a page": answer(b"<html>502</html>", Content_Type="text/html"),
    "not JSON": answer(b"{'results': []}"),
    "NaN": answer(b'{"results": NaN}'),
    "half": answer(json.dumps(FOUND).encode()[:-3]),
    "UTF-16": answer(json.dumps(FOUND).encode("utf-16")),
    "deep": answer(DEEP),
    "truncated": answer(FOUND, Content_Length="5000"),
    "no such encoding": answer(b"xyz", Content_Encoding="gzip"),
    "no HTTP": b"hello\r\n\r\n",
    "nothing": b"",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
    "a redirect": answer({}, 302, Location="http://127.0.0.1:1/"),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("said", NO_ANSWERS)
def test_what_is_no_answer_is_a_service_error(client: str, said: str) -> None:
    with pytest.raises(ServiceError):
        told(CLIENTS[client], NO_ANSWERS[said])


@pytest.mark.parametrize("client", sorted(set(CLIENTS) - {"digests"}))  # an empty object has no digests
def test_an_empty_object_is_no_answer(client: str) -> None:
    with pytest.raises(ServiceError, match="in an unknown form"):
        told(CLIENTS[client], answer({}))


def test_a_page_in_json_is_told_by_its_type() -> None:
    with pytest.raises(ServiceError, match="Content-Type is text/html"):
        told(search, answer(FOUND, Content_Type="text/html"))
    assert told(search, answer(FOUND, Content_Type="application/problem+json; charset=utf-8"))


@pytest.mark.parametrize(
    "body",
    [
        {"results": []},
        {**FOUND, "results": []},
        {**FOUND, "results": [[HIT], [HIT]]},
        {**FOUND, "results": [[HIT, HIT, HIT]]},
        {**FOUND, "results": [[{**HIT, "id": 1}]]},
        {**FOUND, "results": [[{**HIT, "title": None}]]},
        {**FOUND, "results": [[{"id": "1", "text": "", "score": 1.0}]]},
        {**FOUND, "results": [[{**HIT, "score": "1"}]]},
        {**FOUND, "results": {"0": [HIT]}},
    ],
)
def test_a_wrong_search_result_is_a_service_error(body: Any) -> None:
    with pytest.raises(ServiceError, match="in an unknown form"):
        told(search, answer(body))


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_ids": [5]},
        {"token_ids": [5, -6]},
        {"token_ids": [5, 2**40]},
        {"token_ids": [5, 6.0]},
        {"token_ids": list(range(9)), "logprobs": {"content": [{"logprob": -1.0}] * 9}},
        {"logprobs": {"content": [{"logprob": -0.5}]}},
        {"logprobs": {"content": [{"logprob": -0.5}, {"logprob": None}]}},
        {"weight_versions": []},
        {"weight_versions": [{"start": 0, "end": 10**15, "version": "3"}]},  # would fill the memory
        {"weight_versions": [{"start": 0, "end": 10**15, "version": "3"}, {"start": 10**15, "end": 2, "version": "3"}]},
        {"weight_versions": [{"start": 1, "end": 2, "version": "3"}]},
        {"finish_reason": "abort"},
        {"finish_reason": 7},
    ],
)
def test_a_wrong_turn_is_a_service_error(wrong: dict[str, Any]) -> None:
    assert told(generate, answer({"choices": [TURN]})).token_ids == [5, 6]
    with pytest.raises(ServiceError):
        told(generate, answer({"choices": [{**TURN, **wrong}]}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def spoilt(right: Any) -> st.SearchStrategy[Any]:
    """A right answer with something in it replaced."""
    if isinstance(right, dict):
        parts = st.sampled_from(sorted(right)).flatmap(lambda key: spoilt(right[key]).map(lambda v: {**right, key: v}))
        return st.one_of(JSON, parts)
    if isinstance(right, list) and right:
        return st.one_of(JSON, spoilt(right[0]).map(lambda value: [value, *right[1:]]))
    return JSON


@settings(max_examples=150, deadline=None)
@given(body=spoilt(FOUND))
def test_any_answer_to_a_search_is_passages_or_a_service_error(body: Any) -> None:
    client = RetrieverClient("http://x", retries=0)

    async def said(*_: Any, **__: Any) -> Any:
        return body

    client.request = said  # type: ignore[method-assign]
    try:
        found = asyncio.run(client.search_scored("q", 2))
    except ServiceError:
        return
    assert all(isinstance(text, str) for hit in found for text in (hit.passage.id, hit.passage.title, hit.passage.text))


@settings(max_examples=300, deadline=None)
@given(body=spoilt({"choices": [TURN]}))
def test_any_answer_to_a_turn_is_tokens_or_a_service_error(body: Any) -> None:
    try:
        turn = PolicyClient("http://x")._generation(body, 8, cut=False)
    except ServiceError:
        return
    assert len(turn.token_ids) == len(turn.logprobs) == len(turn.versions) <= 8
    assert all(isinstance(token, int) and token >= 0 for token in turn.token_ids)


@pytest.mark.parametrize("client", sorted(set(CLIENTS) - {"generate", "weights"}))
def test_a_server_that_drips_is_cut_after_the_time_for_the_whole_answer(client: str) -> None:
    async def run() -> float:
        async with RawServer(lambda _: LONG, drip=0.05).serving() as url:
            begun = time.monotonic()
            with pytest.raises(ServiceError, match=r"no whole answer within 0.5 s"):
                await CLIENTS[client](url)
            return time.monotonic() - begun

    with pytest.MonkeyPatch.context() as patch:
        real = service.HttpService.__init__
        patch.setattr(
            service.HttpService, "__init__", lambda self, *a, **how: real(self, *a, **{**how, "timeout": 0.5})
        )
        assert asyncio.run(run()) < 60  # all of the answer takes two minutes


def test_a_check_of_a_server_that_drips_is_cut_too() -> None:
    async def run() -> None:
        async with RawServer(lambda _: LONG, drip=0.05).serving() as url, RetrieverClient(url) as client:
            with pytest.raises(ServiceError, match="does not answer"):
                await asyncio.wait_for(client.check_ready(0.3), 60)

    asyncio.run(run())


def test_an_answer_without_end_is_cut_at_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.HttpService, "_max_answer_bytes", 10_000)
    with pytest.raises(ServiceError, match="more than 10000 bytes"):
        told(search, answer(b"[" + b"1," * 20_000 + b"1]"))


def test_an_order_whose_connection_broke_may_have_arrived_and_is_not_repeated() -> None:
    """A search may be: it changes nothing."""

    async def ask() -> tuple[ServiceError, ServiceError, int, int]:
        weights, searches = RawServer(lambda _: b""), RawServer(lambda _: b"HTTP/1.1 200 OK\r\nContent-Len")
        async with weights.serving() as url, PolicyAdmin(url, token="admin-for-tests", retries=2) as admin:
            with pytest.raises(ServiceError) as one:
                await admin.update_weights(WeightsRequest(path="/weights", version="1"))
        async with searches.serving() as url, RetrieverClient(url, retries=2) as client:
            with pytest.raises(ServiceError) as other:
                await client.search("q", 5)
        return one.value, other.value, len(weights.asked), len(searches.asked)

    order, search, ordered, searched = asyncio.run(ask())
    assert (order.reason, ordered) == ("disconnected", 1)
    assert (search.reason, searched) == ("disconnected", 3)


def test_whom_nobody_answers_is_unreachable_and_asked_again(free_port: Callable[[], int]) -> None:
    """A request that has not arrived may be sent again even where a time-out must not be."""

    async def ask() -> ServiceError:
        url = f"http://127.0.0.1:{free_port()}"
        async with PolicyAdmin(url, token="admin-for-tests", retries=1) as admin:
            before = RETRIES.labels("weights", "unreachable")._value.get()
            with pytest.raises(ServiceError) as raised:
                await admin.weights()
            assert RETRIES.labels("weights", "unreachable")._value.get() == before + 1
        return raised.value

    assert asyncio.run(ask()).reason == "unreachable"
