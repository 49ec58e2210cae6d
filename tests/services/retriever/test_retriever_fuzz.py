"""Whatever is sent to the retriever, it never answers 500: requests made from its description, and raw bytes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

PATHS = [
    "/search",
    "/open",
    "/retrieve",
    "/queries",
    "/compat/research/search",
    "/compat/research/batch_search",
    "/access",
    "/mcp",
]

_SETTINGS = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def retriever(shared_retriever: Any) -> Any:
    return shared_retriever


def test_every_route_keeps_to_its_description(retriever: Any) -> None:
    operations = [
        found.ok()  # type: ignore[union-attr]
        for found in schemathesis.openapi.from_url(f"{retriever.url}/openapi.json").get_all_operations()
    ]
    assert len(operations) > len(PATHS)
    for operation in operations:

        @_SETTINGS
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
            case.call_and_validate(checks=checks, timeout=60)

        check()


@pytest.mark.parametrize("path", PATHS)
@given(body=st.binary(max_size=200), kind=st.sampled_from(["application/json", "text/plain", ""]))
@_SETTINGS
def test_any_bytes_are_refused_or_answered(retriever: Any, path: str, body: bytes, kind: str) -> None:
    headers = {"content-type": kind, "accept": "application/json, text/event-stream"}
    assert httpx.post(retriever.url + path, content=body, headers=headers).status_code < 500


@given(begin=st.sampled_from([0x81, 0x83, 0x8F, 0xDE, 0xDF]), body=st.binary(max_size=200))
@_SETTINGS
def test_any_bytes_after_the_first_of_msgpack_are_refused_or_answered(retriever: Any, begin: int, body: bytes) -> None:
    assert httpx.post(f"{retriever.url}/retrieve", content=bytes([begin]) + body).status_code < 500


@given(query=st.text(max_size=60), k=st.text(max_size=6) | st.integers().map(str))
@_SETTINGS
def test_any_address_of_colberts_search_is_refused_or_answered(retriever: Any, query: str, k: str) -> None:
    asked = {"query": query.encode("utf-8", "replace").decode(), "k": k.encode("utf-8", "replace").decode()}
    assert httpx.get(f"{retriever.url}/api/search", params=asked).status_code in (200, 422)


@pytest.mark.parametrize("path", ["/search", "/retrieve", "/compat/research/search", "/mcp"])
@given(
    query=st.text(
        alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x1c\x1d\x1e\x1f"),
        min_size=1,
        max_size=60,
    )
)
@_SETTINGS
def test_any_text_is_a_query(retriever: Any, path: str, query: str) -> None:
    call = {"name": "search", "arguments": {"query": query}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call} if path == "/mcp" else {"query": query}
    response = httpx.post(retriever.url + path, json=body, headers={"accept": "application/json, text/event-stream"})
    refused = path == "/search" and not query.strip()
    assert response.status_code == (422 if refused else 200)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/search", {"query": "x" * 10_000}, 422),
        ("/retrieve", {"queries": ["x" * 10_000]}, 200),
        ("/search", {"query": "a\x00b\x1b[2J\u202e"}, 200),
        ("/search", {"queries": ["a"] * 10_000}, 422),
        ("/retrieve", {"queries": ["a"] * 10_000}, 200),
        ("/retrieve", {"queries": [f"query {number}" for number in range(4096)], "topk": 1}, 200),
        ("/search", {"query": "a", "top_k": 10**30}, 422),
        ("/search", {"query": "\ud800"}, 422),
        ("/retrieve", {"queries": ["\ud800 a"], "topk": 1}, 200),
        ("/queries", {"queries": ["\ud800 a"], "k": 1}, 200),
        ("/retrieve", {"queries": ["a"] * 4096, "topk": 100}, 200),
        ("/retrieve", {"queries": ["a"] * 10_001, "topk": 100}, 422),
    ],
)
def test_the_extremes_have_their_documented_answer(
    retriever: Any, path: str, body: dict[str, Any], status: int
) -> None:

    content = json.dumps(body).encode()  # as escapes: a lone surrogate has no other form
    response = httpx.post(
        retriever.url + path, content=content, headers={"content-type": "application/json"}, timeout=120
    )
    assert response.status_code == status, response.text[:300]
