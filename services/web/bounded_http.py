"""uvicorn's HTTP protocol with limits that uvicorn lacks: of connections, of heads, of the time to send a request and
to read an answer. Who exceeds one is cut off."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from research.descriptors import connections_each
from services.web.telemetry.refusals import count_refusal

logger = logging.getLogger(__name__)

# One line for each refusal would fill the disk.
_WARN_SECONDS = 10.0
_FLUSH_SECONDS = 5.0
# What a client must read at least, on average; when writing goes on, it has taken three quarters of asyncio's buffer.
_LEAST_BYTES_PER_SECOND = 16_384
_TAKEN_BYTES = 49_152


@dataclass(frozen=True, slots=True)
class HttpBounds:
    """What clients may take.

    Attributes:
        connections: open at once; None: as many as file descriptors allow, at most 4,096.
        head_bytes: of the headers of a request, and of its first line.
        headers: in a request.
        request_seconds: until a request has arrived, from its first byte or from the opening of its connection.
        answer_seconds: until an answer is read, from when the client is slower than the server; a long answer has as
            much longer as it takes at 16 KiB per second.
    """

    connections: int | None = None
    head_bytes: int = 65_536
    headers: int = 100
    request_seconds: float = 30.0
    answer_seconds: float = 60.0


def bounded_protocol(bounds: HttpBounds) -> type[BoundedHttp]:
    """A protocol class for one server: uvicorn's option `http`."""
    most = bounds.connections or connections_each(services=1)
    return type("BoundedHttp", (BoundedHttp,), {"bounds": bounds, "most": most, "waiting": {}})


class BoundedHttp(HttpToolsProtocol):
    """One connection; `bounded_protocol` makes a class of its own for each server."""

    bounds: ClassVar[HttpBounds]
    most: ClassVar[int]
    # Connections without a complete request, those that have waited longest first: they make room for new ones.
    waiting: ClassVar[dict[BoundedHttp, None]]
    last_warning: ClassVar[float] = -_WARN_SECONDS

    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _in_request = False
    _unparsed = 0
    _head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection; if there are too many, close the one that has waited longest."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            count_refusal("too_many_connections", 0)
            self._warn(f"more than {self.most} connections are open; those that have waited longest are closed")
            oldest = next(iter(self.waiting), self)
            self.waiting.pop(oldest, None)
            oldest.transport.abort()
            if oldest is self:
                return
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.waiting.pop(self, None)
        self._stop_sending_clock()
        self._stop_reading_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse a line that is too long before it has ended."""
        if self._sending is None and not self._busy:
            self._await_request()
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > self.bounds.head_bytes:
            self._refuse(431, "head_too_large", f"a line of the head is longer than {self.bounds.head_bytes} bytes")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_request, self._head = True, 0
        if self._sending is None and not self._busy:
            self._await_request()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._unparsed = 0
        self._head += len(name) + len(value)
        super().on_header(name, value)
        if len(self.headers) > self.bounds.headers or self._head > self.bounds.head_bytes:
            self._refuse(
                431,
                "head_too_large",
                f"more than {self.bounds.headers} headers, or {self.bounds.head_bytes} bytes of them",
            )

    def on_headers_complete(self) -> None:
        """Pass the request on, unless it has been refused."""
        self._unparsed = 0
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on."""
        self._unparsed = 0
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived."""
        self._unparsed, self._in_request = 0, False
        self.waiting.pop(self, None)
        self._stop_sending_clock()
        if self.transport.get_write_buffer_size() == 0:
            self._stop_reading_clock()
        if self.cycle is not None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written, though perhaps not read."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._start_reading_clock()
        else:
            self._stop_reading_clock()
        if self.transport.is_closing() or self._busy:
            return
        self.waiting[self] = None
        if self._in_request and self._sending is None:
            self._await_request()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._start_reading_clock()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if not self._busy:
            self._stop_reading_clock()
        elif self._reading is not None:
            longest = self.loop.time() + self.bounds.answer_seconds
            due = min(longest, self._reading.when() + _TAKEN_BYTES / _LEAST_BYTES_PER_SECOND)
            self._reading.cancel()
            self._reading = self.loop.call_at(due, self._cut_reader)

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        self.waiting[self] = None
        self._sending = self.loop.call_later(self.bounds.request_seconds, self._cut_sender)

    def _start_reading_clock(self) -> None:
        # Not started anew each time the client reads a little (`resume_writing`): that could take days.
        if self._reading is None:
            self._reading = self.loop.call_later(self.bounds.answer_seconds, self._cut_reader)

    def _stop_sending_clock(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _stop_reading_clock(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _cut_sender(self) -> None:
        self._sending = None
        if self._in_request:
            self._refuse(
                408, "request_too_slow", f"the request did not arrive within {self.bounds.request_seconds:g} s"
            )
        else:
            self.transport.close()

    def _cut_reader(self) -> None:
        self._reading = None
        if self.transport.get_write_buffer_size():
            count_refusal("answer_not_read", 0)
            self._warn(f"an answer was not read within {self.bounds.answer_seconds:g} s")
            self.transport.abort()

    def _refuse(self, status: int, reason: str, why: str) -> None:
        if self.transport.is_closing():
            return
        count_refusal(reason, status)
        self._warn(f"a request was refused with {status}: {why}")
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            head = f"HTTP/1.1 {status} Refused\r\ncontent-type: text/plain\r\ncontent-length: {len(why)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n{why}".encode())
        self.transport.close()
        self.loop.call_later(_FLUSH_SECONDS, self.transport.abort)

    def _warn(self, what: str) -> None:
        own = type(self)
        if (now := time.monotonic()) - own.last_warning >= _WARN_SECONDS:
            own.last_warning = now
            logger.warning("%s (logged at most every %.0f s)", what, _WARN_SECONDS)
