"""The retriever as a tool of agent hosts, through the official client over streamable HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest
from mcp import Client

T = TypeVar("T")


@pytest.fixture(scope="module")
def retriever(shared_retriever: Any) -> Any:
    return shared_retriever


def with_client(retriever: Any, use: Callable[[Client], Awaitable[T]]) -> T:
    async def main() -> T:
        async with asyncio.timeout(60), Client(f"{retriever.url}/mcp") as client:
            return await use(client)

    return asyncio.run(main())


def test_a_host_learns_what_the_tool_takes(retriever: Any) -> None:
    search, fetch = with_client(retriever, lambda client: client.list_tools()).tools
    assert (search.name, fetch.name) == ("search", "fetch")
    assert "passages" in (search.description or "")
    assert (search.input_schema["required"], fetch.input_schema["required"]) == (["query"], ["id"])
    top_k = search.input_schema["properties"]["top_k"]
    assert (top_k["default"], top_k["minimum"], top_k["maximum"]) == (5, 1, 100)
    for tool in (search, fetch):
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint


def test_the_tool_finds_what_the_route_finds(retriever: Any) -> None:
    asked = {"query": "painter of The Starry Night", "top_k": 2}
    result = with_client(retriever, lambda client: client.call_tool("search", asked))
    assert not result.is_error
    with retriever.client() as client:
        [hits] = client.post("/search", json=asked).json()["results"]
    found = result.structured_content["results"]
    assert found == [{**{name: hit[name] for name in ("id", "title", "text", "score")}, "url": ""} for hit in hits]
    assert found[0]["title"] == "The Starry Night"


def test_many_calls_at_once_share_one_client(retriever: Any) -> None:
    async def many(client: Client) -> list[Any]:
        return await asyncio.gather(*(client.call_tool("search", {"query": f"year {year}"}) for year in range(20)))

    assert not any(result.is_error for result in with_client(retriever, many))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"query": "  "}, "query: it is blank"),
        ({"query": "a", "top_k": 101}, "top_k: 101 is above the limit of 100"),
        ({"query": "a", "top_k": 0}, "top_k: 0 is below 1"),
        ({"query": "x" * 5000}, "query: 5000 characters are above the limit of 4096"),
        ({}, "query"),
    ],
)
def test_a_wrong_call_is_explained_to_the_model(retriever: Any, arguments: dict[str, Any], named: str) -> None:
    result = with_client(retriever, lambda client: client.call_tool("search", arguments))
    assert result.is_error
    assert named in getattr(result.content[0], "text", "")


def test_a_page_from_elsewhere_cannot_use_it(retriever: Any) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = {"accept": "application/json, text/event-stream"}
    for header in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
        response = httpx.post(f"{retriever.url}/mcp", json=call, headers={**accept, **header})
        assert response.status_code in (403, 421), header
