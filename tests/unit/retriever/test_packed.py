"""Bodies in msgpack: read as the same JSON would be, answered in msgpack, and refused with words."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import httpx
import msgspec
import pytest
from fastapi import APIRouter, FastAPI, Request
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from services.retriever.api.packed import MOST_BYTES, PackedRoute, is_packed, packed_form
from services.web.errors import install_error_handlers


class Asked(BaseModel):
    most_values: ClassVar[int] = 100_000
    query: str | None = None
    queries: list[str] | None = None
    topk: int | None = None
    return_scores: bool = False


def ask(body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """Through a route that tells what it read."""
    app = FastAPI()
    install_error_handlers(app)
    router = APIRouter(route_class=PackedRoute)

    @router.post("/ask")
    async def tell(body: Asked, request: Request) -> dict[str, Any]:
        return {**body.model_dump(), "packed": is_packed(request)}

    app.include_router(router)

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://it") as client:
            return await client.post("/ask", content=body, headers=headers)

    return asyncio.run(main())


ASKED = st.fixed_dictionaries(
    {},
    optional={
        "query": st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.none(),
        "queries": st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=5),
        "topk": st.integers(-(2**63), 2**63 - 1),
        "return_scores": st.booleans(),
        "other": st.binary(max_size=3) | st.lists(st.floats(), max_size=2),
    },
)


@settings(max_examples=60, deadline=None)
@given(asked=ASKED)
def test_it_is_read_as_json_would_be(asked: dict[str, Any]) -> None:
    found = ask(msgspec.msgpack.encode(asked)).json()
    asked.pop("other", None)
    as_json = ask(msgspec.json.encode(asked), {"content-type": "application/json"}).json()
    assert found == {**as_json, "packed": True}
    assert not as_json["packed"]


@settings(max_examples=200, deadline=None)
@given(begin=st.sampled_from([0x80, 0x81, 0x83, 0xDE, 0xDF]), body=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(begin: int, body: bytes) -> None:
    assert ask(bytes([begin]) + body).status_code in (200, 422)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (msgspec.msgpack.encode({"query": 7}), "$.query"),
        (msgspec.msgpack.encode({"queries": ["a", 7]}), "$.queries[1]"),
        (msgspec.msgpack.encode({"query": "x" * MOST_BYTES}), f"{MOST_BYTES} bytes"),
        (b"\x81\xa1a" + b"\x81\xa1a" * 5000, "msgpack"),
        (b"\x81\xa1a" + b"\x91" * 100_000, "msgpack"),
        (b"\x81\xa5query\xa1\xff", "msgpack"),
        (b"\xdf\xff\xff\xff\xff", "msgpack"),
        (b"\x81\xa7queries\xdd\xff\xff\xff\xff\xa0", "msgpack"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, named: str) -> None:
    response = ask(body)
    assert response.status_code == 422
    assert named in response.json()["message"]
    assert len(response.content) < 500


@pytest.mark.parametrize(("queries", "result"), [(None, [1, 2]), (1, [[1, 2]]), (3, [[1, 2]] * 3), (0, [])])
def test_the_form_is_one_value_of_msgpack(queries: int | None, result: Any) -> None:
    form = packed_form(lambda hits: [hit["id"] for hit in hits], queries)
    hits: list[dict[str, str | float]] = [{"id": 1}, {"id": 2}]
    parts = [form.dumps(form.shape(hits)) for _ in range(1 if queries is None else queries)]
    assert msgspec.msgpack.decode(form.head + form.separator.join(parts) + form.tail([])) == {"result": result}
