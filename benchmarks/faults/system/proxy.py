"""A small HTTP proxy on loopback between the trainer and a service, which can do everything that networks and broken
servers do. It counts requests, so that a fault can begin at the n-th of a kind.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """What is done to requests while the fault lasts."""

    REFUSE = "refused connections"
    BLACK_HOLE = "black hole"
    CUT = "cut answer"
    DRIP = "dripping answer"
    STATUS = "status"
    NONSENSE = "nonsense in a 200"
    DELAY = "delay"


# To every request, as an outage of the network; the others meet the requests that work is done by, and checks of
# readiness pass: the harder case, since nothing but the work tells that something is wrong.
_OF_ALL = frozenset({Mode.REFUSE, Mode.BLACK_HOLE, Mode.DELAY})
_CHECKS = ("/readyz", "/livez", "/info", "/health")
_DRIP_SECONDS = 0.5
NONSENSE = (
    b"<html><body>It works!</body></html>",
    b'{"ok": true}',
    b"[]",
    b'{"results": null, "choices": []}',
    b"",
    b'{"choices": [{"token_ids": "abc"}], "results": [[{"id": 1}]], "version": 3}',
)


@dataclass(frozen=True)
class NetworkFault:
    """`status` is for Mode.STATUS, `seconds` for Mode.DELAY, `variant` chooses among NONSENSE."""

    mode: Mode
    status: int = 0
    seconds: float = 0.0
    variant: int = 0


@dataclass
class _Watch:
    path: str
    left: int
    reached: Callable[[], None]


class Proxy:
    """Forwards to a port of this machine, from a thread of its own; `counts` counts requests by path and outcome."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._fault: NetworkFault | None = None
        self._watch: _Watch | None = None
        self.counts: Counter[str] = Counter()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy of {target}", daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.port = 0
        self._call(self._listen())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def inject(self, fault: NetworkFault) -> None:
        """From now on, until `heal`; may be called from any thread."""
        self._in_loop(lambda: self._inject(fault))

    def heal(self) -> None:
        """End the fault. What was swallowed stays unanswered; new requests pass."""
        self._fault = None
        if self._server is None:
            self._call(self._listen())

    def at_request(self, path: str, number: int, reached: Callable[[], None]) -> None:
        """Call `reached` in the proxy's thread when the n-th request from now on whose path begins so has come."""
        self._watch = _Watch(path, number, reached)

    def forget(self) -> None:
        """Wait for no request any more."""
        self._watch = None

    def close(self) -> None:
        """Drop every connection and end the thread."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _end(self) -> None:
        self._drop()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    def _call(self, work: Callable[..., object] | object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type]

    def _in_loop(self, work: Callable[[], None]) -> None:
        if threading.current_thread() is self._thread:
            work()
            return

        async def run() -> None:
            work()

        self._call(run())

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**24)
        self.port = self._server.sockets[0].getsockname()[1]

    def _inject(self, fault: NetworkFault) -> None:
        self._fault = fault
        if fault.mode is Mode.REFUSE:
            self._drop()

    def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    def _for(self, path: str) -> NetworkFault | None:
        fault = self._fault
        return None if fault is not None and fault.mode not in _OF_ALL and path.startswith(_CHECKS) else fault

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await _body(reader, head)
                path = head.split(b" ", 2)[1].decode("latin-1")
                self._notice(path)
                if await self._instead(path, writer):
                    continue
                if upstream is None or upstream[0].at_eof():  # a service closes a connection that was idle in a fault
                    upstream = await asyncio.open_connection("127.0.0.1", self._target, limit=2**24)
                    self._writers.add(upstream[1])
                upstream[1].write(head + body)
                await upstream[1].drain()
                answer_head = await upstream[0].readuntil(b"\r\n\r\n")
                answer = await _body(upstream[0], answer_head)
                await self._answer(path, answer_head, answer, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            return  # either side has closed, in order or not
        except asyncio.CancelledError:
            return  # the bench ends; asyncio would print a traceback for each that still hangs
        finally:
            for each in (writer, *((upstream[1],) if upstream else ())):
                self._writers.discard(each)
                each.transport.abort()

    def _notice(self, path: str) -> None:
        self.counts[path.partition("?")[0]] += 1
        watch = self._watch
        if watch is not None and path.startswith(watch.path):
            watch.left -= 1
            if watch.left <= 0:
                self._watch = None
                watch.reached()

    async def _instead(self, path: str, writer: asyncio.StreamWriter) -> bool:
        """Answer without the service, if the fault says so."""
        fault = self._for(path)
        if fault is None:
            return False
        if fault.mode is Mode.STATUS:
            self.counts[f"answered {fault.status}"] += 1
            _write(writer, fault.status, b'{"error": "injected", "message": "by the fault bench"}')
            return True
        if fault.mode is Mode.NONSENSE:
            self.counts["answered nonsense"] += 1
            _write(writer, 200, NONSENSE[fault.variant % len(NONSENSE)])
            return True
        if fault.mode is Mode.BLACK_HOLE:
            await self._swallow()
        return False

    async def _answer(self, path: str, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        fault = self._for(path)
        if fault is not None and fault.mode is Mode.BLACK_HOLE:
            await self._swallow()  # it was sent before the hole opened, and its answer falls into it
        if fault is not None and fault.mode is Mode.DELAY:
            self.counts["delayed"] += 1
            await asyncio.sleep(fault.seconds)
        if fault is not None and fault.mode is Mode.CUT:
            self.counts["cut"] += 1
            writer.write(head + body[: len(body) // 2])
            with suppress(OSError):
                await writer.drain()
            raise ConnectionAbortedError
        if fault is not None and fault.mode is Mode.DRIP:
            self.counts["dripped"] += 1
            writer.write(head)
            for byte in body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(_DRIP_SECONDS)
            return
        writer.write(head + body)
        await writer.drain()

    async def _swallow(self) -> None:
        self.counts["swallowed"] += 1
        await asyncio.Event().wait()


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    lines = head.lower().split(b"\r\n")
    for line in lines:
        if line.startswith(b"content-length:"):
            return await reader.readexactly(int(line.partition(b":")[2]))
    if any(line.startswith(b"transfer-encoding:") and b"chunked" in line for line in lines):
        parts = []
        while True:
            size = await reader.readuntil(b"\r\n")
            parts += [size, await reader.readexactly(int(size, 16) + 2)]
            if int(size, 16) == 0:
                return b"".join(parts)
    return b""


def _write(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = f"HTTP/1.1 {status} Injected\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
