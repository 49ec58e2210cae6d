"""Refuses bodies of very many values on vLLM's routes, before vLLM reads them.

vLLM validates every item of a list, in each of the forms that a field may have, and keeps what is wrong with each: a
list of eight million numbers in place of messages, 16 MB, took 18 GiB. Only lists of token ids are long by nature.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import orjson
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from research.http import request_id
from services.policy.bodies.dear_fields import MOST_PROMPTS, dear_fault
from services.web.json_bounds import fault_of

# Messages, tools and schemas of any usual chat; wrong values cost vLLM some 2 KB each.
MOST_VALUES = 10_000
# Of all lists together: vLLM tries a message in each of its forms, a tenth of a millisecond each.
MOST_ITEMS = 1_000
# Apart from numbers under a name with one of these in it, of which there may be as many as tokens.
_NUMBERS = ("token", "bytes", "offset", "logprob")
# Of `input` there, more only where the context has room for them: a right one costs a tenth of a millisecond, a wrong
# one three and 1 MB, since each of some forty forms says what it misses. So we look for the first wrong one ourselves.
_RESPONSES = ("/v1/responses", "/v1/responses/render")
_OF_INPUT = range(64, 257)
_TOKENS_PER_ITEM, _VALUES_PER_ITEM = 64, 16
# Of lists within an item; of what has many forms itself, and of tools beside.
_MOST_PARTS, _MOST_TOOLS = 256, 128
_OF_MANY_FORMS = {"tools": 64, "actions": 64}
# The longest context, a few times over.
MOST_TOKENS = 1_000_000
# Where what was sampled is made into text again: long by nature, but for the request that comes with it.
_DERENDER = "/derender"
_WITH_IT = ("chat_request", "completion_request")
_MOST_ITEMS_WITH_IT, _MOST_OF_SAMPLED = 500, 2_500
_TOKENS = {
    "/inference/v1/generate": "token_ids",
    "/v1/completions": "prompt",
    "/v1/completions/render": "prompt",
    "/detokenize": "tokens",
}
_MOST_ID = 2**31 - 1
# Its list of names is long where a step of many episodes is cut, and is read as it is.
_ABORTING = "/abort_requests"
# Our own routes know how many values each of them takes (`services.web.errors.ValidationRoute`).
_OURS = ("/answer", "/admin")


class CheapRefusals:
    """ASGI middleware; the fault is told in the form of OpenAI's API, as vLLM tells its own.

    Args:
        item_fault: what is wrong with an item of a response's input, or None.
    """

    def __init__(self, app: ASGIApp, max_model_len: int, item_fault: Callable[[object], str | None]) -> None:
        self._app = app
        self._item_fault = item_fault
        self._of_input = min(max(_OF_INPUT[0], max_model_len // _TOKENS_PER_ITEM), _OF_INPUT[-1])

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
        if fault := await self._fault_of(scope["path"].rstrip("/"), whole):
            await _refusal(400, fault)(scope, receive, send)
            return

        async def again() -> Any:
            nonlocal whole
            if whole is None:
                return await receive()
            first, whole = {"type": "http.request", "body": whole, "more_body": False}, None
            return first

        await self._app(scope, again, send)

    async def _fault_of(self, path: str, body: bytes) -> str | None:
        """What is wrong with the body; others get their turn while it is looked at."""
        if (fault := _fault(path, body, self._of_input)) or path.endswith(_ABORTING):
            return fault
        await asyncio.sleep(0)
        values = _read(body)
        if not isinstance(values, dict):
            return None
        fault = dear_fault(values)
        if fault is None and path in _RESPONSES:
            fault = await self._response_fault(values)
        return fault

    async def _response_fault(self, values: dict[str, Any]) -> str | None:
        """What is wrong with the first item of its input that is."""
        given, tools = values.get("input"), values.get("tools")
        if isinstance(tools, list) and len(tools) > _MOST_TOOLS:
            return f"tools: it has more than {_MOST_TOOLS} items"
        if given is None or isinstance(given, str):
            return None
        if not isinstance(given, list):
            return "input: it is neither a text nor a list"
        for number, item in enumerate(given):
            if fault := _parts_fault(item) or self._item_fault(item):
                return f"input.{number}: {fault}"
            await asyncio.sleep(0)
        return None


def _read(body: bytes) -> Any:
    """As the server reads it, which takes NaN and other encodings, too; None for what is no JSON."""
    try:
        return orjson.loads(body)
    except ValueError:
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _may_have_json(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
        return False
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return not scope["path"].startswith(_OURS) and not kind.lower().startswith(b"multipart/")


def _fault(path: str, body: bytes, of_input: int) -> str | None:
    """What is wrong with the body; None if vLLM may read it. `of_input`: the most items of a response's input."""
    if path.endswith(_ABORTING):
        return fault_of(body, MOST_VALUES)
    responses, field = path in _RESPONSES, _TOKENS.get(path, "")
    if fault_of(body, of_input if responses else MOST_ITEMS) is None:
        return None  # no list can be long
    most = _VALUES_PER_ITEM * of_input if responses else MOST_VALUES
    if fault := fault_of(body, MOST_TOKENS if field else most):
        return fault
    try:
        values = orjson.loads(body)
        if field and isinstance(values, dict) and _are_tokens(values.get(field)):
            del values[field]
            body = orjson.dumps(values)
    except (ValueError, orjson.JSONEncodeError) as error:  # the latter if it is nested very deeply
        return f"the body cannot be read: {error}"
    if fault := fault_of(body, most):
        told = f"{field}: {fault}, and they are not the token ids of one prompt or of {MOST_PROMPTS}"
        return told if field else fault
    given = values.get("input") if responses and isinstance(values, dict) else None
    if isinstance(given, list) and len(given) > of_input:
        return f"input: it has more than {of_input} items"
    if path.endswith(_DERENDER) and isinstance(values, dict):
        asked = {name: values.pop(name) for name in _WITH_IT if name in values}
        if _items(asked) > _MOST_ITEMS_WITH_IT:
            return f"the lists of {' and '.join(asked)} have more than {_MOST_ITEMS_WITH_IT} items"
        most_items = _MOST_OF_SAMPLED
    else:
        most_items = MOST_ITEMS
    return f"the lists of the body have more than {most_items} items" if _items(values) > most_items else None


def _parts_fault(item: object) -> str | None:
    for name, value in item.items() if isinstance(item, dict) else ():
        most = _OF_MANY_FORMS.get(name, _MOST_PARTS)
        if isinstance(value, list) and len(value) > most:
            return f"{name}: it has more than {most} items"
    return None


def _items(values: Any) -> int:
    """Of all lists, at any depth, but those of numbers that are of tokens."""
    found, waiting = 0, [("", values)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.items())
        elif isinstance(value, list):
            if any(map(name.__contains__, _NUMBERS)) and _is_of_numbers(value):
                continue
            found += len(value)
            waiting.extend((name, each) for each in value if isinstance(each, dict | list))
    return found


def _is_of_numbers(value: list[Any]) -> bool:
    """Whether it holds only numbers, or only pairs and the like of numbers."""
    types = set(map(type, value))
    return types <= {int, float} or (types == {list} and all(set(map(type, each)) <= {int, float} for each in value))


def _are_tokens(value: object) -> bool:
    """Whether it is a list of ids, or a short list of such lists; a number that is no id is as dear as a wrong type."""
    if not isinstance(value, list):
        return False
    if set(map(type, value)) == {list}:
        return len(value) <= MOST_PROMPTS and all(map(_are_ids, value))
    return _are_ids(value)


def _are_ids(values: list[Any]) -> bool:
    return not values or (set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= _MOST_ID)


def _refusal(status: int, message: str, headers: Any = None) -> JSONResponse:
    kind = "BadRequestError" if status < 500 else "ServiceUnavailableError"
    error = {"message": message, "type": kind, "param": None, "code": status, "request_id": request_id.current()}
    return JSONResponse({"error": error}, status_code=status, headers=headers)
