"""Answers bounded in bytes: each alone, and all that clients have not read yet together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from research.errors import ServiceBusyError
from services.retriever.types import HitDicts
from services.web.errors import HttpError

# uvicorn stops taking pieces while a client does not read.
_PIECE = 65_536
# Answers that wait for clients, at most so many of the largest.
_LARGEST_UNREAD = 32


class UnreadAnswers:
    """Bytes of answers that clients have not read yet.

    Args:
        most_each: of one answer.
    """

    def __init__(self, most_each: int) -> None:
        self._most_each = most_each
        self._most = most_each * _LARGEST_UNREAD
        self.held = 0

    def respond(self, results: Iterable[HitDicts], shape: Callable[[HitDicts], Any], frame: Frame) -> Response:
        """The response `frame(parts)`, where the parts are the hits of each query in the shape that a client wants.

        Raises:
            HttpError: 422 if it is larger than one answer may be.
            ServiceBusyError: too much is unread.
        """
        content = orjson.dumps(frame(self.encode(results, shape)))
        if self.held + len(content) > self._most:
            raise ServiceBusyError(f"{self.held} bytes of answers are not read yet; try again later")
        return _PiecewiseResponse(content, self)

    def encode(self, results: Iterable[HitDicts], shape: Callable[[HitDicts], Any]) -> list[orjson.Fragment]:
        """The hits of each query as JSON; equal hits are encoded once. Raises HttpError (422) if they are too large."""
        encoded: dict[int, bytes] = {}
        parts, size = [], 0
        for hits in results:
            part = encoded.get(id(hits))
            if part is None:
                part = encoded[id(hits)] = orjson.dumps(shape(hits))
            size += len(part)
            if size > self._most_each:
                told = f"the answer is larger than {self._most_each} bytes; ask for fewer passages, or fewer queries"
                raise HttpError(422, "answer_too_large", told)
            parts.append(orjson.Fragment(part))
        return parts


Frame = Callable[[list[orjson.Fragment]], object]


class _PiecewiseResponse(Response):
    """Sent in pieces as the client reads; counted as unread until it is sent."""

    media_type = "application/json"

    def __init__(self, content: bytes, unread: UnreadAnswers) -> None:
        super().__init__(content)
        self._unread = unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = len(self.body)
        self._unread.held += size
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, size, _PIECE):
                piece = self.body[start : start + _PIECE]
                await send({"type": "http.response.body", "body": piece, "more_body": start + _PIECE < size})
        finally:
            self._unread.held -= size
