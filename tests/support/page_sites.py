"""Hosts of pages as real HTTP servers on loopback, and an internet of names and public addresses that lead to them."""

from __future__ import annotations

import asyncio
import gzip
import socket
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from tests.support.web_server import serving

PARAGRAPHS = [
    "The Starry Night is an oil-on-canvas painting by the Dutch Post-Impressionist painter Vincent van Gogh.",
    "It depicts the view from the east-facing window of his asylum room at Saint-Rémy-de-Provence.",
]
ARTICLE = (
    "<html><head><title>The Starry Night</title><script>var secret = 1</script></head><body>"
    "<nav><a href='/a'>Home</a> <a href='/b'>About</a></nav><article><h1>The Starry Night</h1>"
    + "".join(f"<p>{each}</p>" for each in PARAGRAPHS)
    + "</article><footer>We use cookies</footer></body></html>"
)
NAMES = tuple(f"{name}.example" for name in ("site", "other", "slow", "quick"))
PUBLIC = "198.41.0.4"  # a root name server, which these tests never reach


def html(text: str = ARTICLE, **headers: str) -> Response:
    return Response(text, media_type="text/html", headers=headers)


@dataclass
class PageSite:
    """One server; what it answers by path, and what it was asked, robots.txt apart.

    Attributes:
        robots: the text of its robots.txt, or another answer; 404 if None.
        delay: seconds before each answer.
    """

    pages: dict[str, Callable[[], Response]] = field(default_factory=lambda: {"/": html})
    robots: str | Response | None = None
    delay: float = 0.0
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    robots_asked: int = 0
    most_at_once: int = 0
    _now: int = 0

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Its port while the block runs."""
        app = FastAPI()
        app.add_api_route("/{path:path}", self._serve, methods=["GET"], response_model=None)
        with serving(app, names=NAMES) as port:
            yield port

    async def _serve(self, request: Request) -> Response:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if path == "/robots.txt":
            self.robots_asked += 1
            if isinstance(self.robots, Response):
                return self.robots
            return Response(self.robots, media_type="text/plain") if self.robots is not None else Response("", 404)
        self.asked.append(path)
        self.headers.append(dict(request.headers))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.delay)
            page = self.pages.get(path)
            return page() if page is not None else Response("no such page", 404)
        finally:
            self._now -= 1


def redirect(to: str, status: int = 302) -> Callable[[], Response]:
    return lambda: RedirectResponse(to, status)


def drip() -> Response:
    """A page that never ends, a byte at a time."""

    async def drops() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    return StreamingResponse(drops(), media_type="text/html")


def endless() -> Response:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"<p>more</p>" * 5000
            await asyncio.sleep(0)  # whoever has left is noticed meanwhile

    return StreamingResponse(parts(), media_type="text/html")


def bomb() -> Response:
    """A thousand times as long as it looks."""
    packed = gzip.compress(b"a" * 50_000_000)
    assert len(packed) < 100_000
    return Response(packed, media_type="text/html", headers={"Content-Encoding": "gzip"})


def hollow() -> Response:
    """A packed page that never ends and holds nothing: empty blocks."""

    async def blocks() -> AsyncIterator[bytes]:
        yield gzip.compress(b"")[:10]
        while True:
            yield b"\x00\x00\x00\xff\xff" * 10_000
            await asyncio.sleep(0)

    return StreamingResponse(blocks(), media_type="text/html", headers={"Content-Encoding": "gzip"})


@dataclass
class Internet:
    """What names mean, and where connections arrive, by address and port.

    Of the answers to a name one comes after the other, and the last stays; an empty one says that there is no such.
    `connected` is where connections were made to, `resolved` the names that were looked up.
    """

    names: dict[str, list[list[str]]] = field(default_factory=dict)
    hosts: Mapping[tuple[str, int], int] = field(default_factory=dict)
    connected: list[tuple[str, int]] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Stand between this process and the network; loopback stays as it is."""
        resolve, connect = socket.getaddrinfo, BaseSelectorEventLoop.sock_connect

        def getaddrinfo(host: Any, port: Any, *others: Any, **more: Any) -> Any:
            if host not in self.names:
                return resolve(host, port, *others, **more)
            self.resolved.append(host)
            answers = self.names[host]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if not answer:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in answer]
            ends = [(address, port, 0, 0) if ":" in address else (address, port) for address in answer]
            return [(kind, socket.SOCK_STREAM, 6, "", end) for kind, end in zip(kinds, ends, strict=True)]

        async def sock_connect(loop: Any, sock: socket.socket, address: Any) -> None:
            self.connected.append(tuple(address[:2]))
            if (port := self.hosts.get(tuple(address[:2]))) is not None:
                address = ("127.0.0.1", port)
            elif address[0] != "127.0.0.1":
                raise ConnectionRefusedError("nobody is there")
            await connect(loop, sock, address)

        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        patch.setattr(BaseSelectorEventLoop, "sock_connect", sock_connect)
