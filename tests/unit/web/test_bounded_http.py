"""Slow, silent, endless and too many clients against our HTTP server: each is cut off, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from uvicorn.server import ServerState

from services.web.body_limit import BodyLimit
from services.web.bounded_http import HttpBounds, bounded_protocol
from tests.support.web_server import connect, post, read_all, serving

BOUNDS = HttpBounds(connections=20, head_bytes=10_000, headers=50, request_seconds=1.0, answer_seconds=1.0)
# For those who are to be answered, or refused for something else, however slow the machine.
PATIENT = replace(BOUNDS, request_seconds=60.0, answer_seconds=60.0)
LARGE = 30_000_000
PIECE, PIECES = 50_000, 160  # together more than the system keeps for a connection
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def small_app() -> FastAPI:
    app = FastAPI()

    @app.get("/livez")
    async def live() -> str:
        return "alive"

    @app.get("/large")
    async def large() -> Response:
        return Response(b"x" * LARGE)

    @app.get("/pieces")
    async def pieces() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(PIECES):
                yield b"x" * PIECE

        return StreamingResponse(parts())

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    return app


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(small_app(), bounds=BOUNDS) as port:
        yield port


@pytest.fixture(scope="module")
def patient() -> Iterator[int]:
    with serving(small_app(), bounds=PATIENT) as port:
        yield port


def test_all_bodies_together_are_bounded() -> None:
    app = small_app()
    app.add_middleware(BodyLimit, max_bytes=1000, max_held=2500)
    half = post("/echo", b"y" * 1000)[:-1]
    with serving(app) as port, ExitStack() as stack:
        url = f"http://127.0.0.1:{port}/echo"
        held = [stack.enter_context(connect(port, half)) for _ in range(2)]
        deadline = time.monotonic() + 20
        while (refused := httpx.post(url, content=b"y" * 900)).status_code != 503:
            assert time.monotonic() < deadline
        assert refused.headers["retry-after"] == "1"
        assert httpx.post(url, content=b"y" * 400).status_code == 200
        held[0].sendall(b"y")
        assert held[0].recv(100).startswith(b"HTTP/1.1 200")
        assert httpx.post(url, content=b"y" * 900).status_code == 200
        assert httpx.post(url, content=b"y" * 1001).status_code == 413


def is_alive(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/livez", timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET /livez HTTP/1.1\r\nHo", b"HTTP/1.1 408"),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf", b"HTTP/1.1 408"),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", b"HTTP/1.1 408"),
        (b"\r\n", b""),
    ],
)
def test_who_does_not_finish_a_request_is_cut_off(port: int, sent: bytes, answer: bytes) -> None:
    with connect(port, sent) as connection:
        assert read_all(connection).startswith(answer)


def test_a_second_request_has_the_same_time_as_the_first(port: int) -> None:
    with connect(port, GET + b"GET /livez HT") as connection:
        assert read_all(connection).count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % number for number in range(10_000)),
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: %s\r\n" % (number, b"a" * 900) for number in range(40)) + b"\r\n",
        GET + b"GET / HTTP/1.1\r\nX: " + b"a" * 1_000_000,
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 1_000_000,
    ],
    ids=["line", "header", "headers", "bytes", "second", "trailer"],
)
def test_an_endless_head_is_refused_while_it_arrives(patient: int, sent: bytes) -> None:
    begun = time.monotonic()
    with connect(patient) as connection:
        connection.sendall(sent)
        answer = read_all(connection)
    assert b"HTTP/1.1 431" in answer or not answer  # reset: we were still sending
    assert time.monotonic() - begun < 20
    assert is_alive(patient)


def test_an_endless_header_does_not_hold_the_event_loop(patient: int) -> None:
    sent, most = 0, 20_000_000
    with connect(patient, b"GET / HTTP/1.1\r\nX: ") as connection:
        try:
            while sent < most:
                connection.sendall(b"a" * 65_536)
                sent += 65_536
        except OSError:
            pass
    assert sent < most


def test_ordinary_requests_are_answered_whole_also_after_each_other(patient: int) -> None:
    with connect(patient, (GET + post("/echo", b"y" * 500_000)) * 3) as connection:
        received = b""
        while received.count(b"y") < 1_500_000:
            received += connection.recv(1_000_000)
    assert received.count(b"HTTP/1.1 200") == 6
    with httpx.Client(base_url=f"http://127.0.0.1:{patient}", timeout=60) as client:
        for _ in range(3):
            assert len(client.get("/large").content) == LARGE


def test_who_does_not_read_the_answer_is_cut_off(port: int) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # The time begins with the first piece that is not taken; each read of little does not prolong it.
        received, slow_until = 0, time.monotonic() + 3
        while time.monotonic() < slow_until:
            received += len(connection.recv(1000))
            time.sleep(0.01)
        received += len(read_all(connection))
    assert received < LARGE


def read_slowly(port: int, each: int, pause: float, most_seconds: float) -> int:
    """Ask for an answer in pieces and read so many bytes at a time; returns how many came."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /pieces HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received, slow_until = 0, time.monotonic() + most_seconds
        while time.monotonic() < slow_until:
            try:
                if not (part := connection.recv(each)):
                    return received
            except ConnectionResetError:
                return received
            received += len(part)
            time.sleep(pause)
        return received + len(read_all(connection))


def test_who_reads_a_long_answer_steadily_gets_it_whole_however_long_it_takes() -> None:
    bounds = replace(BOUNDS, answer_seconds=4.0)  # a busy machine may hold the reader up for seconds
    with serving(small_app(), bounds=bounds) as port:
        begun = time.monotonic()
        assert read_slowly(port, 4096, 0.0025, 120) >= PIECE * PIECES
        assert time.monotonic() - begun > bounds.answer_seconds, "it was too fast to show anything"


def test_who_stops_reading_a_long_answer_is_cut_off(port: int) -> None:
    assert read_slowly(port, 100, 0.2, 4) < PIECE * PIECES


def test_what_a_client_takes_buys_it_time_by_the_byte_and_never_more_than_at_first() -> None:
    async def run() -> None:
        config = uvicorn.Config(small_app(), lifespan="off")
        protocol = bounded_protocol(HttpBounds(answer_seconds=60.0))(config, ServerState(), {})
        protocol.flow = cast(Any, SimpleNamespace(pause_writing=lambda: None, resume_writing=lambda: None))
        protocol.cycle = cast(Any, SimpleNamespace(response_complete=False))
        loop = asyncio.get_running_loop()
        protocol.pause_writing()
        assert protocol._reading is not None
        for left, then in ((1.0, 4.0), (56.0, 59.0), (58.0, 60.0)):  # 48 KiB at 16 KiB per second
            protocol._reading.cancel()
            protocol._reading = loop.call_later(left, protocol._cut_reader)
            protocol.resume_writing()
            assert protocol._reading.when() - loop.time() == pytest.approx(then, abs=0.9)
        protocol._stop_reading_clock()

    asyncio.run(run())


def test_of_too_many_connections_those_are_closed_that_wait_longest(patient: int) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(patient)) for _ in range(100)]
        assert is_alive(patient)
        assert read_all(idle[0]) == b""
        with connect(patient, GET) as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
