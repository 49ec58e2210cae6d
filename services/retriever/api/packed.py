"""msgpack in and out, as GEM's server has it. Its client sends no `Content-Type`; the body itself says what it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message

from services.retriever.api.compat_search import Form
from services.retriever.types import HitDicts
from services.web.disconnect import CLIENT_CLOSED_REQUEST
from services.web.errors import HttpError, ValidationRoute

# GEM sends a single query. A value takes one byte here and fifty once it is read.
MOST_BYTES = 262_144
# Maps of up to 15, 2**16 and 2**32 keys. JSON begins with none of these bytes.
_FIRST_BYTES = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
_PACKED = "research.packed"


@dataclass(frozen=True, slots=True)
class _Asked:
    """What GEM's client sends: `query` since 2025-07, `queries` before."""

    query: str | None = None
    queries: list[str] | None = None
    topk: int | None = None
    return_scores: bool = False


class PackedRoute(ValidationRoute):
    """A route that takes msgpack as well; its endpoint reads the body as JSON, and asks `is_packed`."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def either(request: Request) -> Response:
            try:
                body = await request.body()
            except ClientDisconnect:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            return await handle(_as_json(request, body) if body and body[0] in _FIRST_BYTES else request)

        return either


def is_packed(request: Request) -> bool:
    """Whether the client sent msgpack, and reads it."""
    return _PACKED in request.scope


def packed_form(shape: Callable[[HitDicts], Any], queries: int | None) -> Form:
    """`{"result": …}` with a list for each query, or, with None, with the hits of the only one."""
    head = b"\x81" + msgspec.msgpack.encode("result")
    if queries is not None:
        head += b"\xdd" + queries.to_bytes(4, "big")
    return Form(shape, head, lambda scores: b"", b"", msgspec.msgpack.encode, "application/msgpack")


def _as_json(request: Request, body: bytes) -> Request:
    if len(body) > MOST_BYTES:
        raise HttpError(422, "invalid_request", f"a body in msgpack may have {MOST_BYTES} bytes")
    try:
        asked = msgspec.msgpack.decode(body, type=_Asked)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise HttpError(422, "invalid_request", f"the body is msgpack, but not as GEM sends it: {error}") from error
    unread: list[Message] = [{"type": "http.request", "body": msgspec.json.encode(asked), "more_body": False}]

    async def again() -> Message:
        return unread.pop() if unread else await request.receive()

    others = [(name, value) for name, value in request.headers.raw if name != b"content-type"]
    headers = [*others, (b"content-type", b"application/json")]
    return Request({**request.scope, "headers": headers, _PACKED: True}, again)
