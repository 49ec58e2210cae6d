"""Fetches a page: each redirect is checked as if it were asked for, and all of it has one limit of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import aiohttp
from yarl import URL

from research.http.tries import retry_after
from services.retriever.web.pages import robots
from services.retriever.web.pages.body import read_body, read_start
from services.retriever.web.pages.connections import NotPublicError, open_session
from services.retriever.web.pages.hosts import Host, Hosts
from services.retriever.web.pages.refusals import (
    PageError,
    failed,
    forbidden,
    no_page,
    not_found,
    not_public,
    too_slow,
    unreadable,
)
from services.retriever.web.pages.robots import Robots
from services.retriever.web.pages.urls import is_private_host, page_url
from services.retriever.web.user_agent import AGENT, user_agent

_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_GONE = (404, 410)
_HTML = ("text/html", "application/xhtml+xml")
_PLAIN = ("text/plain", "text/markdown")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A page as it was sent; `url` is where it came from at last, `charset` what its host says, or ""."""

    url: str
    is_html: bool
    charset: str
    body: bytes


@dataclass(slots=True)
class _Visit:
    """One page that is being fetched: whom to tell of the first request, and the seconds left for all of them."""

    on_sent: Callable[[], None]
    left: float
    counted: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one request brought: a body, where to go instead, or a status that is neither."""

    status: int
    location: str | None = None
    kind: str = ""
    charset: str = ""
    body: bytes = b""


Read = Callable[[aiohttp.ClientResponse], Awaitable[bytes]]


class Fetcher:
    """Must be created in the loop that uses it.

    Args:
        charge: counts a page before its first request is sent; what it raises refuses the page.
        timeout: seconds for a page, redirects and robots.txt included, but not the waiting for a turn.
        min_interval: seconds between the beginnings of two requests to a host.
        contact: sent in the `User-Agent`.
        at_once: the most requests under way, to all hosts together.
        private_hosts: `web.private_hosts`.
    """

    def __init__(
        self,
        charge: Callable[[], Awaitable[None]],
        *,
        timeout: float,
        min_interval: float,
        contact: str,
        at_once: int,
        private_hosts: Collection[str],
    ) -> None:
        self._charge = charge
        self._timeout, self._interval, self._private = timeout, min_interval, private_hosts
        self._places = asyncio.Semaphore(at_once)
        self._hosts = Hosts()
        agent = user_agent(contact)
        self._public = open_session(agent, public_only=True)
        self._near = open_session(agent, public_only=False)

    async def close(self) -> None:
        await self._public.close()
        await self._near.close()

    async def fetch(self, url: URL, on_sent: Callable[[], None]) -> Fetched:
        """The page at an address of `page_url`.

        Args:
            on_sent: called once the page is counted.

        Raises:
            PageError: in the words of `refusals`.
        """
        visit = _Visit(on_sent, self._timeout)
        for _ in range(1 + _MOST_REDIRECTS):
            host = self._hosts.of(url)
            async with host.turn:
                await self._require_allowed(url, host, visit)
                answer = await self._ask(url, host, visit, _read_page)
            if answer.location is None:
                return self._page(url, answer)
            url = self._led_on(url, answer.location)
        raise failed(f"more than {_MOST_REDIRECTS} redirects")

    def _page(self, url: URL, answer: _Answer) -> Fetched:
        if answer.status in _GONE:
            raise not_found(answer.status)
        if 400 <= answer.status < 500 and answer.status not in (408, 425, 429):
            raise forbidden(f"its host answered {answer.status}")
        if answer.status != 200:
            raise failed(f"its host answered {answer.status}")
        return Fetched(str(url), answer.kind in _HTML, answer.charset, answer.body)

    async def _require_allowed(self, url: URL, host: Host, visit: _Visit) -> None:
        if host.robots is None:
            host.robots = await self._robots(url, host, visit)
        if not host.robots.allows(url.raw_path_qs):
            raise forbidden("the robots.txt of its host asks programs not to read it")

    async def _robots(self, url: URL, host: Host, visit: _Visit) -> Robots:
        """What the host says; one without a robots.txt allows all, one that cannot say it nothing."""
        url = url.origin() / "robots.txt"
        for _ in range(1 + _MOST_REDIRECTS):
            answer = await self._ask(url, host, visit, _read_robots)
            if answer.location is None:
                break
            url = self._led_on(url, answer.location)
            host = self._hosts.of(url)
        if answer.status == 429 or answer.status >= 500:
            raise failed(f"its host answered {answer.status} for its robots.txt, so nothing of it is read")
        text = answer.body.decode("utf-8", "replace") if answer.status == 200 else ""
        return Robots.read(text, AGENT)

    def _led_on(self, url: URL, location: str) -> URL:
        try:
            return page_url(location, self._private, base=url)
        except PageError as error:
            raise forbidden(f"its host leads on to what is not opened: {error}") from error

    async def _ask(self, url: URL, host: Host, visit: _Visit, read: Read) -> _Answer:
        """One request. Raises PageError if there is no answer in time."""
        await host.take_turn(self._interval)
        # Only now: who waits for a slow host takes no place from others.
        async with self._places:
            if not visit.counted:
                await self._charge()
                visit.counted = True
                visit.on_sent()
            return await self._exchange(url, host, visit, read)

    async def _exchange(self, url: URL, host: Host, visit: _Visit, read: Read) -> _Answer:
        session = self._near if is_private_host(url, self._private) else self._public
        begun = time.monotonic()
        try:
            async with asyncio.timeout(visit.left), session.get(url, allow_redirects=False) as response:
                return await self._answer(response, host, read)
        except TimeoutError as error:
            raise too_slow(self._timeout) from error
        except aiohttp.InvalidURL as error:
            raise no_page("it is no address of a page") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise failed("the name of its host is not known") from error
        except aiohttp.ClientSSLError as error:
            raise failed("its host cannot show who it is (TLS)") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, NotPublicError):
                raise not_public() from error
            raise failed(f"its host does not answer as one does ({type(error).__name__})") from error
        finally:
            visit.left -= time.monotonic() - begun

    async def _answer(self, response: aiohttp.ClientResponse, host: Host, read: Read) -> _Answer:
        status = response.status
        if status in _REDIRECTS and (location := response.headers.get("Location")):
            return _Answer(status, location)
        if status in (429, 503) and (seconds := retry_after(response.headers)) is not None:
            host.pause(seconds)
        if status != 200:
            return _Answer(status)
        return _Answer(status, None, response.content_type, response.charset or "", await read(response))


async def _read_page(response: aiohttp.ClientResponse) -> bytes:
    kind = response.content_type
    if kind not in _HTML and kind not in _PLAIN:
        what = "a PDF, which is not read" if kind == "application/pdf" else f"of the type {kind[:80]}"
        raise unreadable(f"it is no page of text but {what}")
    return await read_body(response)


async def _read_robots(response: aiohttp.ClientResponse) -> bytes:
    return await read_start(response, robots.MOST_BYTES)
