"""Fetches a page: each redirect is checked as if it were asked for, and all of it has one limit of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import aiohttp
from yarl import URL

from research.http.tries import retry_after
from services.retriever.web.pages import robots
from services.retriever.web.pages.body import read_body, read_start
from services.retriever.web.pages.connections import NotPublicError, open_session
from services.retriever.web.pages.hosts import Host, Hosts
from services.retriever.web.pages.kinds import HTML, PLAIN, kind_and_charset
from services.retriever.web.pages.refusals import (
    PageError,
    failed,
    forbidden,
    leads_astray,
    no_page,
    not_found,
    not_public,
    too_slow,
    unreadable,
)
from services.retriever.web.pages.resolver import Resolver
from services.retriever.web.pages.robots import Robots, TooManyRulesError
from services.retriever.web.pages.urls import is_private_host, page_url
from services.retriever.web.user_agent import AGENT, user_agent

_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_GONE = (404, 410)
# Pages that are fetched before those before them are read; each may have some megabytes.
MOST_AHEAD = 4

T = TypeVar("T")
_Read = Callable[[aiohttp.ClientResponse], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A page as it was sent; `url` is where it came from at last, `charset` what its host says, or ""."""

    url: str
    is_html: bool
    charset: str
    body: bytes


@dataclass(slots=True)
class _Visit:
    """One page that is being fetched: what its first request waits for, and the seconds left for all of them."""

    before: Callable[[], Awaitable[None]]
    left: float
    counted: bool = False


@dataclass(frozen=True, slots=True)
class _Answer(Generic[T]):
    """What one request brought: where to go instead, or a status and, of 200, what was read."""

    status: int
    location: str | None = None
    read: T | None = None


class Fetcher:
    """Must be created in the loop that uses it.

    Args:
        charge: counts a page before its first request is sent; what it raises refuses the page.
        timeout: seconds for a page, redirects and robots.txt included, but not the waiting for a turn.
        min_interval: seconds between the beginnings of two requests to a host.
        contact: sent in the `User-Agent`.
        at_once: the most requests under way, to all hosts together; and, with `MOST_AHEAD`, the most pages in memory.
        private_hosts: `web.private_hosts`.
        refused_networks: `web.refused_networks`.
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
        refused_networks: Collection[str] = (),
    ) -> None:
        self._charge = charge
        self._timeout, self._interval, self._private = timeout, min_interval, private_hosts
        self._places = asyncio.Semaphore(at_once)
        self._rooms = asyncio.Semaphore(at_once + MOST_AHEAD)
        self._parsing = asyncio.Lock()  # one robots.txt at a time leaves the loop its turns
        self._hosts = Hosts()
        agent = user_agent(contact)
        # Two, so that names of strangers do not keep those of `private_hosts` waiting.
        self._resolvers = Resolver(), Resolver()
        self._public = open_session(agent, self._resolvers[0], public_only=True, refused=refused_networks)
        self._near = open_session(agent, self._resolvers[1], public_only=False)

    async def close(self) -> None:
        await self._public.close()
        await self._near.close()
        for resolver in self._resolvers:
            await resolver.close()

    @asynccontextmanager
    async def fetch(self, url: URL, before: Callable[[], Awaitable[None]]) -> AsyncIterator[Fetched]:
        """The page at an address of `page_url`, for the block. Few are in memory; others wait, and are not sent for.

        Args:
            before: awaited just before the page is counted; what it raises refuses the page.

        Raises:
            PageError: in the words of `refusals`.
        """
        visit = _Visit(before, self._timeout)
        for _ in range(1 + _MOST_REDIRECTS):
            await self._require_allowed(url, visit)
            host = self._hosts.of(url)
            async with AsyncExitStack() as room:
                async with host.turn:
                    await host.take_turn(self._interval)
                    await room.enter_async_context(self._rooms)
                    answer = await self._ask(url, host, visit, self._read_page)
                if answer.location is None:
                    yield self._page(answer)
                    return
            url = self._led_on(url, answer.location)
        raise failed(f"more than {_MOST_REDIRECTS} redirects")

    def _page(self, answer: _Answer[Fetched]) -> Fetched:
        if answer.read is not None:
            return answer.read
        if answer.status in _GONE:
            raise not_found(answer.status)
        if 400 <= answer.status < 500 and answer.status not in (408, 425, 429):
            raise forbidden(f"its host answered {answer.status}")
        raise failed(f"its host answered {answer.status}")

    async def _require_allowed(self, url: URL, visit: _Visit) -> None:
        async with self._hosts.of(url).asking_for_rules:
            rules = self._hosts.robots(url)
            if rules is None:
                rules = await self._robots(url, visit)
                self._hosts.keep_robots(url, rules)
        async with self._parsing:  # many rules take a third of a second for a long path
            allowed = await asyncio.to_thread(rules.allows, url.raw_path_qs)
        if not allowed:
            await self._count(visit)  # for it is recorded, and nobody may fill the record for nothing
            raise forbidden("the robots.txt of its host asks programs not to read it")

    async def _robots(self, url: URL, visit: _Visit) -> Robots:
        """What the host says; one without a robots.txt allows all, one that cannot say it nothing."""
        url = url.origin() / "robots.txt"
        try:
            for _ in range(1 + _MOST_REDIRECTS):
                host = self._hosts.of(url)
                async with host.turn:
                    await host.take_turn(self._interval)
                    answer = await self._ask(url, host, visit, self._read_robots)
                if answer.location is None:
                    break
                url = self._led_on(url, answer.location)
        except PageError as error:
            if error.may_pass:
                raise
            # It is read anew soon, so this is not for good.
            raise failed(f"its robots.txt cannot be read, so nothing of it is: {error}") from error
        if answer.status == 429 or answer.status >= 500:
            raise failed(f"its host answered {answer.status} for its robots.txt, so nothing of it is read")
        return answer.read or Robots({})

    def _led_on(self, url: URL, location: str) -> URL:
        try:
            return page_url(location, self._private, base=url)
        except PageError as error:
            raise leads_astray(str(error)) from error

    async def _ask(self, url: URL, host: Host, visit: _Visit, read: _Read[T]) -> _Answer[T]:
        """One request, once it is the host's turn: who waits for a slow one takes no place from others.

        Raises:
            PageError: there is no answer in time.
        """
        async with self._places:
            await self._count(visit)
            return await self._exchange(url, host, visit, read)

    async def _count(self, visit: _Visit) -> None:
        if not visit.counted:
            await visit.before()
            await self._charge()
            visit.counted = True

    async def _exchange(self, url: URL, host: Host, visit: _Visit, read: _Read[T]) -> _Answer[T]:
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

    async def _answer(self, response: aiohttp.ClientResponse, host: Host, read: _Read[T]) -> _Answer[T]:
        status = response.status
        if status in _REDIRECTS and (location := response.headers.get("Location")):
            return _Answer(status, location)
        if status in (429, 503) and (seconds := retry_after(response.headers)) is not None:
            host.pause(seconds)
        return _Answer(status, read=await read(response) if status == 200 else None)

    async def _read_page(self, response: aiohttp.ClientResponse) -> Fetched:
        kind, charset = kind_and_charset(response.headers)
        if kind not in HTML and kind not in PLAIN:
            what = "a PDF, which is not read" if kind == "application/pdf" else f"of the type {kind[:80]}"
            raise unreadable(f"it is no page of text but {what}")
        return Fetched(str(response.url), kind in HTML, charset, await read_body(response))

    async def _read_robots(self, response: aiohttp.ClientResponse) -> Robots:
        file = await read_start(response, robots.MOST_BYTES)
        try:
            async with self._parsing:
                return await asyncio.to_thread(Robots.read, file, AGENT)
        except TooManyRulesError as error:
            raise failed(f"its robots.txt cannot be kept to, so nothing of it is read: {error}") from error
