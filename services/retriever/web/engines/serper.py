"""Serper: results of Google, ten of which cost one credit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from services.retriever.web.engines.engine import Ask, Engine, Found, pages


class _Result(TypedDict):
    link: str
    title: str
    snippet: NotRequired[str]


class _Answer(TypedDict):
    searchParameters: dict[str, Any]
    organic: list[_Result]


_ANSWER = TypeAdapter(_Answer)


def _ask(query: str, count: int) -> Ask:
    return Ask("POST", "/search", {"q": query, "num": count})


def _read(answer: Any, _: Mapping[str, str]) -> list[Found]:
    told = _ANSWER.validate_python(answer, strict=True)
    return pages([Found(each["link"], each["title"], each.get("snippet", "")) for each in told["organic"]])


SERPER = Engine(
    name="serper",
    form="google.serper.dev/search as its playground and clients have it, read 2026-11-29",
    address="https://google.serper.dev",
    ask=_ask,
    read=_read,
    most_results=10,
    most_chars=1000,
    key_variable="SERPER_API_KEY",
    key_headers=lambda key: {"X-API-KEY": key},
    is_spent=lambda status, text: status == 400 and "credits" in text.lower(),
)
