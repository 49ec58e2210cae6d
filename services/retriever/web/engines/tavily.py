"""Tavily Search: one credit a request (`search_depth` basic)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from services.retriever.web.engines.engine import Ask, Engine, Found, pages


class _Result(TypedDict):
    url: str
    title: str
    content: str


class _Answer(TypedDict):
    results: list[_Result]


_ANSWER = TypeAdapter(_Answer)
# Beyond the limits of the plan, and of what is paid as one goes.
_SPENT = (432, 433)


def _ask(query: str, count: int) -> Ask:
    asked = {"query": query, "max_results": count, "search_depth": "basic", "topic": "general"}
    return Ask("POST", "/search", asked)


def _read(answer: Any, _: Mapping[str, str]) -> list[Found]:
    told = _ANSWER.validate_python(answer, strict=True)
    return pages([Found(each["url"], each["title"], each["content"]) for each in told["results"]])


TAVILY = Engine(
    name="tavily",
    form="docs.tavily.com, api-reference/endpoint/search; its error codes of 2025-04-02; read 2026-11-29",
    address="https://api.tavily.com",
    ask=_ask,
    read=_read,
    most_results=20,
    most_chars=400,
    key_variable="TAVILY_API_KEY",
    key_headers=lambda key: {"Authorization": f"Bearer {key}"},
    is_spent=lambda status, _: status in _SPENT,
)
