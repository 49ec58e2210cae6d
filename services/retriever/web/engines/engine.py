"""What a search engine is to us: how it is asked, how its answer is read, and what it allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit


@dataclass(frozen=True, slots=True)
class Found:
    """A result: a page, and what the engine shows of it."""

    url: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: `path` may have a query string, `json` is a body."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None


class EngineBusyError(Exception):
    """An engine says with 200 that it has no time now; `seconds` until it may have."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Engine:
    """A search engine.

    Attributes:
        form: the documentation that `ask` and `read` were written from, with its date or version.
        address: the public one; empty if there is none.
        key_variable: of the environment; None if no key is needed.
        key_headers: what carries the key.
        ask: the request for a query and a number of results.
        read: the results of an answer and its headers, best first. Raises ValueError if it is none, EngineBusyError.
        most_results: of one request.
        most_chars, most_words: of a query; what is longer is cut.
        is_spent: whether a refusal, by status and text, says that the account has nothing left.
        refuses_key: whether it says that the key is wrong, or that we are not welcome.
        wants_contact: whether its rules ask for a contact in the `User-Agent`.
    """

    name: str
    form: str
    address: str
    ask: Callable[[str, int], Ask]
    read: Callable[[Any, Mapping[str, str]], list[Found]]
    most_results: int
    most_chars: int
    most_words: int | None = None
    key_variable: str | None = None
    key_headers: Callable[[str], dict[str, str]] = lambda _: {}
    is_spent: Callable[[int, str], bool] = lambda status, _: status == 402
    refuses_key: Callable[[int, str], bool] = lambda status, _: status in (401, 403)
    wants_contact: bool = False

    def cut(self, query: str) -> str:
        """A query as the engine takes it: in one line, and no longer than it may be."""
        return " ".join(query.split()[: self.most_words])[: self.most_chars].strip()


def get(path: str, parameters: Mapping[str, str | int]) -> Ask:
    """A GET with a query string."""
    return Ask("GET", f"{path}?{urlencode(parameters)}")


def pages(found: Sequence[Found]) -> list[Found]:
    """Each page once, without what is no page of the web. Raises ValueError if nothing is left of what there was."""
    kept = {each.url: each for each in reversed(found) if is_page(each.url)}
    if found and not kept:
        raise ValueError("none of its results has the address of a page")
    return list(reversed(kept.values()))


def is_page(url: str) -> bool:
    """Whether it is an address of the web, with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
