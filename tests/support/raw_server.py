"""A server over real TCP that answers whatever a test wants: late, in drips, half, or with what is no HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request that arrived: `number` counts from 0."""

    number: int
    line: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class RawServer:
    """Answers by `reply`: bytes as they are sent; with `drip`, one at a time, so many seconds apart."""

    reply: Callable[[Asked], bytes]
    drip: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The address while the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self.url

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            asked = Asked(len(self.asked), line, headers, body)
            self.asked.append(asked)
            answer = self.reply(asked)
            for start in range(0, len(answer), 1) if self.drip else ():
                writer.write(answer[start : start + 1])
                await writer.drain()
                await asyncio.sleep(self.drip)
            writer.write(b"" if self.drip else answer)
            await writer.drain()
        writer.close()


def answer(body: bytes | Any, status: int = 200, **headers: str) -> bytes:
    """An answer over HTTP; what is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close"}
    head |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + content
