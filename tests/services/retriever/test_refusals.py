"""Refusing is cheap: for each route, bodies of the allowed size made of the smallest wrong items; large answers."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from research.schemas import ErrorBody
from services.retriever.app import BODY_SIZES, MAX_BODY_BYTES
from tests.support.web_server import Watch, connect, post, read_all, smallest_wrong_items

ROUTES = [
    "/search",
    "/retrieve",
    "/queries",
    "/compat/research/search",
    "/compat/research/batch_search",
    "/access",
    "/open",
    "/mcp",
]
# A busy machine may make a short wait long, so this bounds only what is really stuck.
MOST_SECONDS = 15.0
# Of the processor, for one body: the slowest of former times took 6 and 20, reading the largest text .1.
MOST_CPU_SECONDS = 1.0


def wrong_bodies(size: int) -> dict[str, bytes]:
    bodies = smallest_wrong_items(size - 1000, ["query", "queries", "urls", "method"])
    empty = size - 2000  # texts
    return {**bodies, "msgpack": b"\x81\xa7queries\xdd" + empty.to_bytes(4, "big") + b"\xa0" * empty}


@pytest.fixture(scope="module")
def retriever(launch: Any) -> Any:
    # Before any other test of this module, so that its memory is that of one retriever.
    return launch("retriever", "retriever.max_answer_bytes=1000000")


@pytest.fixture(scope="module")
def port(retriever: Any) -> int:
    return int(retriever.url.rsplit(":", 1)[1])


def peak_mib(process: Any) -> float:
    [line] = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1]) / 1024


def cpu_seconds(process: Any) -> float:
    used = psutil.Process(process.pid).cpu_times()
    return float(used.user + used.system)


def resident_mib(process: Any) -> float:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.parametrize("route", ROUTES)
def test_a_wrong_body_costs_no_more_than_a_right_one(retriever: Any, route: str) -> None:
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    size = BODY_SIZES.get(route, MAX_BODY_BYTES)
    # Reading a body of this size takes some memory, too.
    httpx.post(retriever.url + route, json={"query": "x" * (size - 1000)}, headers=headers, timeout=60)
    before = peak_mib(retriever.process)
    with Watch(retriever.url) as watch, httpx.Client(base_url=retriever.url, timeout=120) as client:
        for name, body in wrong_bodies(size).items():
            began = cpu_seconds(retriever.process)
            response = client.post(route, content=body, headers=headers)
            assert response.status_code in (400, 422), name
            assert cpu_seconds(retriever.process) - began < MOST_CPU_SECONDS, name
            assert len(response.content) < 2000, name
    assert watch.longest < MOST_SECONDS
    assert peak_mib(retriever.process) - before < 40 * size / 2**20
    assert httpx.post(retriever.url + route, content=b" " * (size + 1), headers=headers, timeout=60).status_code == 413


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/search", {"queries": ["a"] * 250, "top_k": 100}),
        ("/retrieve", {"queries": ["a"] * 250, "topk": 100, "return_scores": True}),
        ("/queries", {"queries": ["a"] * 250, "k": 100}),
        ("/compat/research/batch_search", {"query": ["a"] * 250, "top_n": 100, "return_score": True}),
    ],
)
def test_an_answer_that_is_too_large_is_refused_by_its_size(retriever: Any, route: str, body: dict[str, Any]) -> None:
    response = httpx.post(retriever.url + route, json=body, timeout=60)
    assert response.status_code == 422
    assert "larger than 1000000 bytes" in ErrorBody.model_validate_json(response.content).message
    less = {**body, ("query" if "query" in body else "queries"): ["a"] * 10}
    assert httpx.post(retriever.url + route, json=less, timeout=60).status_code == 200


def test_who_does_not_read_answers_takes_no_memory_without_end(retriever: Any, port: int) -> None:
    asked = post("/search", b'{"queries": ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"], "top_k": 100}')
    before = resident_mib(retriever.process)
    with ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(20)
            connection.connect(("127.0.0.1", port))
            connection.sendall(asked * 3)
        assert httpx.get(f"{retriever.url}/livez", timeout=60).status_code == 200
        response = httpx.post(f"{retriever.url}/search", json={"query": "a"}, timeout=60)
        assert response.status_code in (200, 429)
        assert resident_mib(retriever.process) - before < 150
    with connect(port, asked) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_thousand_silent_connections_and_an_endless_header_harm_nobody(retriever: Any, port: int) -> None:
    with ExitStack() as stack, Watch(retriever.url) as watch:
        for sent in (b"", b"GET /livez HTTP/1.1\r\nHo", b"POST /search HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"):
            for _ in range(333):
                stack.enter_context(connect(port, sent))
        sent_mib = 0
        with connect(port, b"GET / HTTP/1.1\r\nX: ") as connection, suppress(OSError):
            while sent_mib < 64:
                connection.sendall(b"a" * 2**20)
                sent_mib += 1
        assert sent_mib < 64
        assert httpx.post(f"{retriever.url}/search", json={"query": "tides"}, timeout=60).status_code == 200
    assert watch.longest < MOST_SECONDS


def test_a_large_request_makes_no_other_wait_for_all_of_it(retriever: Any) -> None:
    async def scenario() -> None:
        large = {"queries": [f"{number} river bank " * 250 for number in range(128)], "top_k": 1}
        async with httpx.AsyncClient(base_url=retriever.url, timeout=300) as client:
            slow = asyncio.create_task(client.post("/search", json=large))
            async with asyncio.timeout(60):
                while "queue_depth 0.0" in (await client.get("/metrics")).text:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for number in range(3):
                assert (await client.post("/search", json={"query": f"tides {number}"})).status_code == 200
                assert not slow.done()
            assert (await slow).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_mcp_opens_no_stream_that_would_stay_open(port: int, method: str) -> None:
    head = f"{method} /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: text/event-stream\r\n\r\n"
    with connect(port, head.encode()) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 405")


@pytest.mark.parametrize("route", ["/search", "/mcp", "/info", "/metrics", "/livez"])
def test_a_page_from_elsewhere_reaches_no_route(retriever: Any, route: str) -> None:
    for header, status in (({"host": "evil.example"}, 421), ({"origin": "http://evil.example"}, 403)):
        assert httpx.get(retriever.url + route, headers=header).status_code == status
