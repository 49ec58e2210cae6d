"""Requests of clients that do not retry: they wait while the retriever loads or is full, and are never misled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from research.schemas import ServiceStatus
from services.retriever.api.answers import UnreadAnswers
from services.retriever.api.compat_search import _STREAMED_AT_ONCE, Form, PatientSearch, _portions
from services.retriever.serving import NotReadyError
from services.retriever.types import Query
from services.web.errors import install_error_handlers
from tests.support.pipeline_bench import Bench, with_bench

FORM = Form(lambda hits: [hit["id"] for hit in hits], b"[", lambda scores: b"]")
Scenario = Callable[[Bench, SimpleNamespace, httpx.AsyncClient], Awaitable[None]]


def run(scenario: Scenario, *, patience: float = 20, most_bytes: int = 10_000, queue: int = 8) -> None:
    """A real pipeline with a queue of eight behind a route, through all of HTTP but the socket."""

    async def main(bench: Bench) -> None:
        retriever = SimpleNamespace(
            settings=SimpleNamespace(
                retriever=SimpleNamespace(max_query_chars=20, max_top_k=5, max_queue_chars=10_000)
            ),
            most_in_time=queue,
            status=ServiceStatus(status="ready"),
            retry_headers=lambda: {"Retry-After": "1"},
        )

        def index(name: str | None) -> Any:
            if retriever.status.status != "ready":
                raise NotReadyError(retriever.status.detail)
            return bench.index

        async def search(index: Any, texts: list[str], top_k: int) -> Any:
            return await bench.pipeline.submit([Query(text, top_k, index) for text in texts])

        retriever.index, retriever.search = index, search
        patient = PatientSearch(retriever, UnreadAnswers(most_bytes), patience)
        retriever.patient = patient
        app = FastAPI()
        install_error_handlers(app)

        @app.post("/ask")
        async def ask(request: Request) -> Response:
            return await patient.answer(request, (await request.json())["queries"], 1, FORM)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://it") as client:
            await scenario(bench, retriever, client)

    with_bench(main, queue=queue)


async def texts(client: httpx.AsyncClient, *queries: str) -> list[str]:
    response = await client.post("/ask", json={"queries": queries})
    assert response.status_code == 200, response.text
    return ["+".join(ids).replace("index@1/", "").replace("#0", "") for ids in json.loads(response.content)]


def test_a_request_waits_while_the_retriever_loads() -> None:
    async def scenario(bench: Bench, retriever: SimpleNamespace, client: httpx.AsyncClient) -> None:
        bench.encoder.go.set()
        retriever.status = ServiceStatus(status="loading", detail="the encoder")
        asked = asyncio.create_task(texts(client, "a", " ", "b"))
        done, _ = await asyncio.wait([asked], timeout=0.2)
        assert not done
        retriever.status = ServiceStatus(status="ready")
        assert await asked == ["a", "", "b"]

    run(scenario)


def test_a_request_waits_for_a_place_and_those_behind_it_keep_their_order() -> None:
    async def scenario(bench: Bench, retriever: SimpleNamespace, client: httpx.AsyncClient) -> None:
        await bench.occupy()
        full = bench.submit(*"stuvwxyz")
        await bench.waiting(8)
        large = asyncio.create_task(texts(client, *"abcdefgh"))
        later = asyncio.create_task(texts(client, *"ijklmnop"))
        done, _ = await asyncio.wait([large, later], timeout=0.2)
        assert not done
        bench.encoder.go.set()
        await full
        assert await large == list("abcdefgh")
        assert await later == list("ijklmnop")
        order = [query for batch in bench.encoder.batches for query in batch]
        assert order.index("a") < order.index("i")

    run(scenario)


def test_more_than_the_queue_holds_is_answered_in_portions() -> None:
    async def scenario(bench: Bench, retriever: SimpleNamespace, client: httpx.AsyncClient) -> None:
        bench.encoder.go.set()
        queries = [f"q{number}" for number in range(100)]
        assert await texts(client, *queries) == queries

    run(scenario)


def test_portions_that_clients_do_not_read_are_few_however_many_clients_there_are() -> None:
    async def scenario(bench: Bench, retriever: SimpleNamespace, client: httpx.AsyncClient) -> None:
        bench.encoder.go.set()
        answers = [
            retriever.patient._pieces(FORM, b"[", [], [[f"q{number}"]], 1) for number in range(2 * _STREAMED_AT_ONCE)
        ]
        for pieces in answers:
            assert await anext(pieces) == b"["
        taken = [asyncio.ensure_future(anext(pieces)) for pieces in answers]
        while sum(each.done() for each in taken) < _STREAMED_AT_ONCE:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert sum(each.done() for each in taken) == _STREAMED_AT_ONCE
        # Who leaves, or has read, makes room.
        for number, (each, pieces) in enumerate(zip(taken, answers, strict=True)):
            await each
            await (pieces.aclose() if number % 2 else anext(pieces))
        assert retriever.patient._streamed._value == _STREAMED_AT_ONCE

    run(scenario)


def test_a_portion_holds_few_queries_if_they_are_long() -> None:
    long, short = "a" * 5, "b"
    assert _portions([long, long, short, short, short, long, "c" * 20, short], 3, 8) == [
        [long],
        [long, short, short],
        [short, long],
        ["c" * 20],
        [short],
    ]
    assert _portions([], 3, 8) == []


@pytest.mark.parametrize("state", ["loading", "full"])
def test_the_wait_ends(state: str) -> None:
    async def scenario(bench: Bench, retriever: SimpleNamespace, client: httpx.AsyncClient) -> None:
        if state == "loading":
            retriever.status = ServiceStatus(status="loading", detail="the encoder")
        else:
            await bench.occupy()
            bench.submit(*"stuvwxyz")
            await bench.waiting(8)
        response = await client.post("/ask", json={"queries": list("abcdefgh")})
        assert response.status_code == 503
        assert ("the encoder" if state == "loading" else "no place") in response.json()["message"]
        assert "Retry-After" in response.headers

    run(scenario, patience=0.1)


def test_what_fails_is_told_at_once() -> None:
    async def scenario(bench: Bench, retriever: SimpleNamespace, client: httpx.AsyncClient) -> None:
        retriever.status = ServiceStatus(status="failed", detail="the index is spoilt")
        response = await client.post("/ask", json={"queries": ["a"]})
        assert response.status_code >= 500

    run(scenario)


def test_an_answer_that_fails_halfway_breaks_off() -> None:
    """JSON that ends early is an error to every client; an empty list of hits would not be one."""

    async def scenario(bench: Bench, retriever: SimpleNamespace, client: httpx.AsyncClient) -> None:
        bench.encoder.go.set()
        with pytest.raises(RuntimeError, match="response already started"):
            await client.post("/ask", json={"queries": [*"abcdefgh", "!"]})

    run(scenario)


def test_a_client_that_leaves_takes_its_queries_along() -> None:
    async def scenario(bench: Bench, retriever: SimpleNamespace, client: httpx.AsyncClient) -> None:
        await bench.occupy()
        asked = asyncio.create_task(texts(client, "a", "b"))
        await bench.waiting(2)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        bench.encoder.go.set()
        assert await bench.submit("next") == ["next#0"]
        assert ["a", "b"] not in bench.encoder.batches

    run(scenario)
