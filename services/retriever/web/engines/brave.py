"""Brave Search API, web search."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from services.retriever.web.engines.engine import Ask, Engine, Found, get, pages


class _Result(TypedDict):
    url: str
    title: str
    description: NotRequired[str]


class _Web(TypedDict):
    results: list[_Result]


class _Answer(TypedDict):
    type: Literal["search"]
    web: NotRequired[_Web]  # absent if nothing was found


_ANSWER = TypeAdapter(_Answer)


def _ask(query: str, count: int) -> Ask:
    # With decorations, matches stand in <strong>.
    asked: dict[str, str | int] = {"q": query, "count": count, "result_filter": "web", "text_decorations": "false"}
    return get("/res/v1/web/search", asked)


def _read(answer: Any, _: Mapping[str, str]) -> list[Found]:
    told = _ANSWER.validate_python(answer, strict=True)
    results = told["web"]["results"] if "web" in told else []
    return pages(
        [
            Found(each["url"], html.unescape(each["title"]), html.unescape(each.get("description", "")))
            for each in results
        ]
    )


BRAVE = Engine(
    name="brave",
    form="api-dashboard.search.brave.com/api-reference/web/search/get, /res/v1, read 2026-11-29",
    address="https://api.search.brave.com",
    ask=_ask,
    read=_read,
    most_results=20,
    most_chars=400,
    most_words=50,
    key_variable="BRAVE_API_KEY",
    key_headers=lambda key: {"X-Subscription-Token": key},
    refuses_key=lambda status, text: status in (401, 403) or "SUBSCRIPTION_TOKEN" in text,
)
