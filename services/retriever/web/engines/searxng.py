"""SearXNG: a metasearch engine that one runs oneself; `json` must be among `search.formats` of its settings.

Its answers to failures are 200 with an empty list: which of its engines failed stands beside it, at every query; which
answered, if with nothing, only in the header `Server-Timing`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from services.retriever.web.engines.engine import Ask, Engine, Found, get, pages


class _Result(TypedDict):
    url: NotRequired[str | None]
    title: NotRequired[str | None]
    content: NotRequired[str | None]


class _Answer(TypedDict):
    results: list[_Result]
    # Pairs of an engine's name and what happened to it.
    unresponsive_engines: NotRequired[list[list[str]]]


_ANSWER = TypeAdapter(_Answer)
# The time of an engine that answered: `total_0_brave;dur=412.1`; `total` alone is all of SearXNG's.
_ANSWERED = re.compile(r"\btotal_\d+_")


def _ask(query: str, count: int) -> Ask:
    return get("/search", {"q": query, "format": "json", "pageno": 1})  # a page has what it has, about twenty


def _read(answer: Any, headers: Mapping[str, str]) -> list[Found]:
    told = _ANSWER.validate_python(answer, strict=True)
    failed = told.get("unresponsive_engines", [])
    if failed and not told["results"] and not _ANSWERED.search(headers.get("Server-Timing", "")):
        raise ValueError(f"none of its engines answered ({'; '.join(': '.join(each) for each in failed)})")
    return pages(
        [Found(each.get("url") or "", each.get("title") or "", each.get("content") or "") for each in told["results"]]
    )


SEARXNG = Engine(
    name="searxng",
    form="docs.searxng.org/dev/search_api and searx/webutils.py, read 2026-11-29",
    address="",
    ask=_ask,
    read=_read,
    most_results=20,
    most_chars=1000,
)
