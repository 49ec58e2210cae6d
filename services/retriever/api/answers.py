"""Answers bounded in bytes: each alone, and all that clients have not read yet together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from research.errors import ServiceBusyError
from services.web.errors import HttpError

T = TypeVar("T")
Frame = Callable[[list[orjson.Fragment]], object]
Dumps = Callable[[Any], bytes]

# uvicorn stops taking pieces while a client does not read.
_PIECE = 65_536
# Answers that wait for clients, at most so many of the largest.
_LARGEST_UNREAD = 32
_JSON = "application/json"


class UnreadAnswers:
    """Bytes of answers that clients have not read yet.

    Args:
        most_each: of one answer.
    """

    def __init__(self, most_each: int) -> None:
        self._most_each = most_each
        self._most = most_each * _LARGEST_UNREAD
        self.held = 0

    def respond(self, results: Iterable[T], shape: Callable[[T], Any], frame: Frame) -> Response:
        """The response `frame(parts)`, where the parts are the hits of each query in the shape that a client wants.

        Raises:
            HttpError: 422 if it is larger than one answer may be.
            ServiceBusyError: too much is unread.
        """
        return self.respond_bytes(orjson.dumps(frame(list(map(orjson.Fragment, self.encode(results, shape))))))

    def respond_bytes(self, content: bytes, media_type: str = _JSON) -> Response:
        """The response with this content. Raises ServiceBusyError if too much is unread."""
        self._require_room(len(content))
        return _PiecewiseResponse(content, media_type, self)

    def stream(self, pieces: AsyncGenerator[bytes], media_type: str = _JSON) -> Response:
        """The response with these pieces; the next one is made once a client has taken the one before.

        Raises:
            ServiceBusyError: too much is unread.
        """
        self._require_room(self._most_each)
        return _StreamedResponse(pieces, media_type, self)

    def _require_room(self, size: int) -> None:
        if self.held + size > self._most:
            told = f"{self.held} bytes of answers are not read yet; try again later"
            raise ServiceBusyError(told, reason="answers_unread")

    def encode(self, results: Iterable[T], shape: Callable[[T], Any], dumps: Dumps = orjson.dumps) -> list[bytes]:
        """The hits of each query, or pages, as bytes; equal ones are encoded once.

        Raises:
            HttpError: 422 if they are too large.
        """
        encoded: dict[int, bytes] = {}
        parts, size = [], 0
        for hits in results:
            part = encoded.get(id(hits))
            if part is None:
                part = encoded[id(hits)] = dumps(shape(hits))
            size += len(part)
            if size > self._most_each:
                told = f"the answer is larger than {self._most_each} bytes; ask for fewer passages, or fewer queries"
                raise HttpError(422, "answer_too_large", told)
            parts.append(part)
        return parts


class _PiecewiseResponse(Response):
    """Sent in pieces as the client reads; counted as unread until it is sent."""

    def __init__(self, content: bytes, media_type: str, unread: UnreadAnswers) -> None:
        super().__init__(content, media_type=media_type)
        self._unread = unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send_counted(bytes(self.body), self._unread, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _StreamedResponse(Response):
    """As `_PiecewiseResponse`, of a length that is not known yet; whoever leaves ends the work on it."""

    def __init__(self, pieces: AsyncGenerator[bytes], media_type: str, unread: UnreadAnswers) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._pieces = pieces
        self._unread = unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        leaving = asyncio.create_task(_disconnected(receive))
        sending = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            leaving.cancel()
            sending.cancel()

    async def _send(self, send: Send) -> None:
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                await _send_counted(piece, self._unread, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_counted(content: bytes, unread: UnreadAnswers, send: Send) -> None:
    """Send a part of a body; until a client has taken it, it counts."""
    unread.held += len(content)
    try:
        for start in range(0, len(content), _PIECE):
            await send({"type": "http.response.body", "body": content[start : start + _PIECE], "more_body": True})
    finally:
        unread.held -= len(content)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
