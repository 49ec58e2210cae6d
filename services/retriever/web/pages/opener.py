"""Opens pages from the record, or from the web: each is fetched once, however many wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from research.errors import AssetError, ServiceBusyError
from services.retriever.web.pages.fetch import Fetcher
from services.retriever.web.pages.reading.reader import Page, Reader
from services.retriever.web.pages.refusals import PageError
from services.retriever.web.pages.urls import page_url
from services.retriever.web.record import Record
from services.retriever.web.refusals import disk_full, not_recorded, record_spoilt


@dataclass(slots=True, eq=False)
class _Opening:
    """A page that is fetched, or is to be once there is a place."""

    task: asyncio.Task[Page] = field(init=False)
    waiters: int = 0
    sent: bool = False


class PageOpener:
    """The pages of the web, and what is recorded of them.

    Args:
        fetcher: None to answer from the record alone.
        private_hosts: `web.private_hosts`.
        most_waiting: pages that are under way or wait; further ones are refused.
        max_wait: seconds until a request is given up.
    """

    def __init__(
        self,
        record: Record,
        fetcher: Fetcher | None,
        *,
        private_hosts: Collection[str],
        most_waiting: int,
        max_wait: float,
    ) -> None:
        self._record, self._fetcher = record, fetcher
        self._private = private_hosts
        self._reader = Reader()
        self._most_waiting, self._max_wait = most_waiting, max_wait
        self._openings: dict[str, _Opening] = {}

    async def open(self, asked: str) -> Page:
        """The page at an address.

        Raises:
            PageError: there is no such page, or none that may be given; in the words of `refusals`.
            ServiceBusyError: too many wait, or it took too long.
            HttpError: nothing may be sent, or nothing recorded; as searches.
        """
        url = str(page_url(asked, self._private))
        if (recorded := self._recorded(url)) is not None:
            return recorded
        opening = self._join(url)
        try:
            async with asyncio.timeout(self._max_wait):
                return await asyncio.shield(opening.task)
        except TimeoutError as error:
            told = f"the page was not opened within {self._max_wait:g} s; try again later"
            raise ServiceBusyError(told, reason="too_slow") from error
        finally:
            opening.waiters -= 1
            # One that is counted goes on, so that it is recorded.
            if not opening.waiters and not opening.sent:
                opening.task.cancel()
                self._forget(url, opening)

    async def close(self) -> None:
        """Give up what is under way: nothing is paid for it."""
        tasks = [opening.task for opening in self._openings.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._reader.close()
        if self._fetcher is not None:
            await self._fetcher.close()

    def _recorded(self, url: str) -> Page | None:
        """The page as it is recorded, None if it is to be fetched. Raises what it was refused with."""
        try:
            entry = self._record.page(url)
        except AssetError as error:
            raise record_spoilt(str(error)) from error
        if entry is None:
            if self._fetcher is None:
                raise not_recorded(url, self._record.path)
            return None
        if "page" in entry:
            return Page(**entry["page"])
        refusal = PageError(**entry["refusal"])
        if refusal.may_pass and self._fetcher is not None:
            return None
        raise refusal

    def _join(self, url: str) -> _Opening:
        opening = self._openings.get(url)
        if opening is None:
            if len(self._openings) >= self._most_waiting:
                told = f"{len(self._openings)} pages are waiting and the limit is {self._most_waiting}; try again later"
                raise ServiceBusyError(told, reason="queue_full")
            opening = self._openings[url] = _Opening()
            opening.task = asyncio.create_task(self._open(url, opening))
            opening.task.add_done_callback(lambda _: self._forget(url, opening))
        opening.waiters += 1
        return opening

    def _forget(self, url: str, opening: _Opening) -> None:
        if self._openings.get(url) is opening:
            del self._openings[url]
        if opening.task.done() and not opening.task.cancelled():
            opening.task.exception()  # those who waited have been told

    async def _open(self, url: str, opening: _Opening) -> Page:
        assert self._fetcher is not None, "without it nothing is joined"

        def sent() -> None:
            opening.sent = True

        try:
            page = await self._reader.read(await self._fetcher.fetch(URL(url), sent))
        except PageError as error:
            refusal = {"status": error.status, "error": error.error, "message": str(error)}
            await self._keep(url, {"refusal": refusal})
            raise
        await self._keep(url, {"page": {"url": page.url, "title": page.title, "text": page.text}})
        return page

    async def _keep(self, url: str, outcome: dict[str, Any]) -> None:
        try:
            await asyncio.to_thread(self._record.add_page, url, outcome)
        except OSError as error:
            raise disk_full(self._record.path, error) from error
