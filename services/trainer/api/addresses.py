"""Takes internal addresses out of what anybody may read who reaches the port."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from research.settings import Settings

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s\"'<>(),;]+")
_NUMBERS = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b(?::\d+)?|\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\](?::\d+)?")


def without_addresses(settings: Settings) -> Callable[[Any], Any]:
    """A function that replaces addresses in texts, also in those of a list or table.

    The services of this run become `<retriever>`, `<policy 2>` and so on, any other address `<address>`.
    """
    ends = settings.endpoints
    urls = {url: f"<policy {number}>" for number, url in enumerate(ends.policy_urls, 1)}
    urls |= {url: f"<retriever {number}>" for number, url in enumerate(ends.retriever_urls, 1)}
    known = {_place(url): name for url, name in urls.items()}
    places = re.compile("|".join(rf"(?<![\w.-]){re.escape(place)}(?!\d)" for place in known if ":" in place) or "(?!)")

    def url_name(match: re.Match[str]) -> str:
        return known.get(_place(match[0]), "<address>")

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(each) for key, each in value.items()}
        if isinstance(value, list):
            return list(map(replaced, value))
        if not isinstance(value, str):
            return value
        text = places.sub(lambda match: known[match[0]], _URL.sub(url_name, value))
        return _NUMBERS.sub("<address>", text)

    return replaced


def _place(url: str) -> str:
    """Host and port of what may be a URL, as they are written."""
    return url.partition("://")[2].partition("/")[0]
