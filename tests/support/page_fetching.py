"""A fetcher of pages whose internet is one site of ours."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from services.retriever.web.pages.fetch import Fetched, Fetcher
from services.retriever.web.pages.refusals import PageError
from services.retriever.web.pages.urls import page_url
from tests.support.page_sites import PUBLIC, Internet, PageSite

SITE = "http://site.example"
Fetch = Callable[[str], Coroutine[Any, Any, Fetched]]


class Sent:
    """Counts pages, as a budget does."""

    def __init__(self) -> None:
        self.pages = 0
        self.last = 0.0

    async def charge(self) -> None:
        self.pages += 1
        self.last = time.monotonic()


async def nothing() -> None:
    """What a page waits for before it is counted."""


def new_fetcher(sent: Sent, private: tuple[str, ...] = (), **limits: Any) -> Fetcher:
    usual = {"timeout": 20.0, "min_interval": 0.0, "contact": "team@site.example", "at_once": 4}
    return Fetcher(sent.charge, private_hosts=private, **{**usual, **limits})


def run(
    work: Callable[[Fetch], Awaitable[Any]],
    *,
    private: tuple[str, ...] = (),
    sent: Sent | None = None,
    **limits: Any,
) -> Any:
    """The work, which receives a function that fetches an address."""

    async def all_of_it() -> Any:
        fetcher = new_fetcher(sent or Sent(), private, **limits)

        async def fetch(asked: str) -> Fetched:
            async with fetcher.fetch(page_url(asked, private), nothing) as page:
                return page

        try:
            return await work(fetch)
        finally:
            await fetcher.close()

    return asyncio.run(all_of_it())


def fetched(asked: str, **options: Any) -> Fetched:
    page = run(lambda fetch: fetch(asked), **options)
    assert isinstance(page, Fetched)
    return page


def refused(asked: str, **options: Any) -> PageError:
    with pytest.raises(PageError) as caught:
        fetched(asked, **options)
    return caught.value


@contextmanager
def reachable(
    patch: pytest.MonkeyPatch, site: PageSite, names: dict[str, list[list[str]]] | None = None
) -> Iterator[Internet]:
    """`site` at the public address, under the name of `SITE`; and at its own port of loopback."""
    with site.serving() as port:
        internet = Internet({"site.example": [[PUBLIC]], **(names or {})}, {(PUBLIC, 80): port})
        internet.install(patch)
        yield internet


@contextmanager
def listening() -> Iterator[socket.socket]:
    """A server near us that must never be connected to."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
