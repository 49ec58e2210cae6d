"""Wikipedia, or another MediaWiki with CirrusSearch and TextExtracts: the introductions of the pages found.

It tells errors with 200. `maxlag` makes it refuse while it is under load, which its rules ask of programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from services.retriever.web.engines.engine import Ask, Engine, EngineBusyError, Found, get, pages


class _Page(TypedDict):
    title: str
    index: int  # its place among the results
    fullurl: str
    extract: NotRequired[str]
    missing: NotRequired[bool]  # deleted since it was indexed


class _Pages(TypedDict):
    pages: list[_Page]


class _Error(TypedDict):
    code: str
    info: NotRequired[str]


class _Answer(TypedDict):
    # Absent if some extracts are in a further answer, which cannot be with so few pages.
    batchcomplete: Literal[True]
    query: NotRequired[_Pages]  # absent if nothing was found


class _Refusal(TypedDict):
    error: _Error


_ANSWER, _REFUSAL = TypeAdapter(_Answer), TypeAdapter(_Refusal)
_BUSY = ("maxlag", "ratelimited", "readonly")
_PAUSE_SECONDS = 5.0  # what the manual of `maxlag` recommends


def _ask(query: str, count: int) -> Ask:
    asked: dict[str, str | int] = {
        "action": "query",
        "format": "json",
        "formatversion": 2,
        "maxlag": 5,
        "generator": "search",
        "gsrsearch": query,
        "gsrlimit": count,
        "prop": "extracts|info",
        "exintro": 1,
        "explaintext": 1,
        "exlimit": "max",
        "inprop": "url",
    }
    return get("/w/api.php", asked)


def _read(answer: Any, _: Mapping[str, str]) -> list[Found]:
    if isinstance(answer, dict) and "error" in answer:
        error = _REFUSAL.validate_python(answer, strict=True)["error"]
        told = f"{error['code']}: {error.get('info', '')}"
        if error["code"] in _BUSY:
            raise EngineBusyError(told, _PAUSE_SECONDS)
        raise ValueError(told)
    told_pages = _ANSWER.validate_python(answer, strict=True).get("query", {"pages": []})["pages"]
    there = sorted((page for page in told_pages if not page.get("missing")), key=lambda page: page["index"])
    return pages([Found(page["fullurl"], page["title"], page.get("extract", "").strip()) for page in there])


WIKIPEDIA = Engine(
    name="wikipedia",
    form="MediaWiki action API (formatversion 2), modules search, extracts, info; read 2026-11-29",
    address="https://en.wikipedia.org",
    ask=_ask,
    read=_read,
    most_results=20,
    most_chars=300,
    wants_contact=True,
)
