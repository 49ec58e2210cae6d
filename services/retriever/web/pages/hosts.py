"""Politeness to each host: one request at a time, with a pause between two, and none while it asks for a longer one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from cachetools import TTLCache
from yarl import URL

from services.retriever.web.pages.refusals import paused
from services.retriever.web.pages.robots import Robots

_MOST_HOSTS = 10_000
# Of all robots.txt that are kept, in bytes: each redirect may lead to another host, whose file is as large as it likes.
_MOST_ROBOTS_BYTES = 32_000_000
_KEPT_SECONDS = 3600.0  # a robots.txt may be kept for a day


@dataclass(slots=True, eq=False)
class Host:
    """One host at one port; times are by `time.monotonic`.

    Whoever has `asking_for_rules` may wait for the `turn` of any host, to which its robots.txt leads on; never the
    other way round.
    """

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    asking_for_rules: asyncio.Lock = field(default_factory=asyncio.Lock)
    next: float = 0.0
    resumes: float = 0.0

    async def take_turn(self, interval: float) -> None:
        """Wait until the host may be asked again.

        Raises:
            PageError: 502 if it has asked for a pause.
        """
        if (left := self.resumes - time.monotonic()) > 0:
            raise paused(left)
        now = time.monotonic()
        begins = max(now, self.next)
        self.next = begins + interval
        await asyncio.sleep(begins - now)

    def pause(self, seconds: float) -> None:
        self.resumes = max(self.resumes, time.monotonic() + seconds)


class Hosts:
    """Those asked in the last hour; over http and https a host has two robots.txt, so these are two."""

    def __init__(self) -> None:
        self._hosts: TTLCache[str, Host] = TTLCache(_MOST_HOSTS, _KEPT_SECONDS)
        self._robots: TTLCache[str, Robots] = TTLCache(_MOST_ROBOTS_BYTES, _KEPT_SECONDS, getsizeof=lambda it: it.size)

    def of(self, url: URL) -> Host:
        """The host of a page."""
        origin = str(url.origin())
        host = self._hosts.get(origin)
        if host is None:
            host = self._hosts[origin] = Host()
        return host

    def robots(self, url: URL) -> Robots | None:
        """What the host of a page says, if it is known."""
        return self._robots.get(str(url.origin()))

    def keep_robots(self, url: URL, robots: Robots) -> None:
        self._robots[str(url.origin())] = robots
