"""Refuses what would cost others dearly on vLLM's routes, before vLLM reads it: very many values, a place before all.

vLLM validates every item of a list, in each of the forms that a field may have, and keeps what is wrong with each: a
list of eight million numbers in place of messages, 16 MB, took 18 GiB. Only lists of token ids are long by nature.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from services.web.json_bounds import fault_of

# Messages, tools and schemas of any usual chat; wrong values cost vLLM some 2 KB each.
MOST_VALUES = 10_000
# vLLM tries each item of a list in each form that it may have: a tenth of a second for so many that are none of them.
_MOST_ITEMS = {
    "/v1/chat/completions": ("messages", 1_000),
    "/v1/chat/completions/render": ("messages", 1_000),
    "/v1/responses": ("input", 64),  # thirty forms, 1 MB each
    "/v1/responses/render": ("input", 64),
}
_MOST_VALUES = dict.fromkeys(("/v1/responses", "/v1/responses/render"), 1_000)
# The longest context, a few times over; and each prompt of a list is a request of its own to the engine.
MOST_TOKENS = 1_000_000
_MOST_PROMPTS = 1_000
_TOKENS = {
    "/inference/v1/generate": "token_ids",
    "/v1/completions": "prompt",
    "/v1/completions/render": "prompt",
    "/detokenize": "tokens",
}
_MOST_ID = 2**31 - 1
# Our own routes know how many values each of them takes (`services.web.errors.ValidationRoute`).
_OURS = ("/answer", "/admin")


class CheapRefusals:
    """ASGI middleware; the fault is told in the form of OpenAI's API, as vLLM tells its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _may_have_json(scope):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        while True:
            try:
                message = await receive()
            except HTTPException as error:
                await _refusal(error.status_code, str(error.detail), error.headers)(scope, receive, send)
                return
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        whole: bytes | None = bytes(body)
        del body
        assert whole is not None
        path = scope["path"].rstrip("/")
        if fault := _fault(path, whole) or _fault_of_fields(path, whole):
            await _refusal(400, fault)(scope, receive, send)
            return

        async def again() -> Any:
            nonlocal whole
            if whole is None:
                return await receive()
            first, whole = {"type": "http.request", "body": whole, "more_body": False}, None
            return first

        await self._app(scope, again, send)


def _may_have_json(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
        return False
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return not scope["path"].startswith(_OURS) and not kind.lower().startswith(b"multipart/")


def _fault(path: str, body: bytes) -> str | None:
    """What is wrong with the body; None if vLLM may read it."""
    fault = fault_of(body, _MOST_VALUES.get(path, MOST_VALUES))
    if fault is None or (field := _TOKENS.get(path)) is None:
        return fault
    if too_many := fault_of(body, MOST_TOKENS):
        return too_many
    try:
        values = orjson.loads(body)
    except ValueError as error:
        return f"the body is not JSON: {error}"
    if not isinstance(values, dict) or not _are_tokens(values.pop(field, None)):
        return f"{field}: {fault}, and they are not the token ids of one prompt or of {_MOST_PROMPTS}"
    return fault_of(orjson.dumps(values), MOST_VALUES)


def _are_tokens(value: object) -> bool:
    """Whether it is a list of ids, or a short list of such lists; a number that is no id is as dear as a wrong type."""
    if not isinstance(value, list):
        return False
    if set(map(type, value)) == {list}:
        return len(value) <= _MOST_PROMPTS and all(map(_are_ids, value))
    return _are_ids(value)


def _are_ids(values: list[Any]) -> bool:
    return not values or (set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= _MOST_ID)


def _fault_of_fields(path: str, body: bytes) -> str | None:
    """What is wrong with the number of items or with the priority.

    vLLM serves lower numbers first. Rollouts ask with 1, so that nobody waits for them; nobody waits for another.
    """
    field, most = _MOST_ITEMS.get(path, ("", 0))
    has_many = bool(field) and fault_of(body, most) is not None
    # The name may be spelt with escapes, or in UTF-16.
    if not has_many and not any(sign in body for sign in (b"priority", b"\\u", b"\0")):
        return None
    try:
        values = json.loads(body)  # as FastAPI reads it
    except (ValueError, RecursionError):
        return None  # and says what is wrong
    if not isinstance(values, dict):
        return None
    items, priority = values.get(field), values.get("priority", 0)
    if isinstance(items, list) and len(items) > most:
        return f"{field}: it has more than {most} items"
    return None if type(priority) is int and priority >= 0 else "priority: it is a whole number of at least 0"


def _refusal(status: int, message: str, headers: Any = None) -> JSONResponse:
    kind = "BadRequestError" if status < 500 else "ServiceUnavailableError"
    error = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status, headers=headers)
