"""Opens pages from the record, or from the web: each is fetched once, however many wait for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from research.errors import AssetError, ServiceBusyError
from services.retriever.web.pages.fetch import Fetcher
from services.retriever.web.pages.reading.reader import Page
from services.retriever.web.pages.reading.readers import Readers
from services.retriever.web.pages.refusals import PageError, failed
from services.retriever.web.pages.urls import page_url
from services.retriever.web.record import Record
from services.retriever.web.refusals import disk_full, not_recorded, record_spoilt
from services.web.errors import HttpError

logger = logging.getLogger(__name__)

# Together with the time that the server waits for its requests, less than `stopping.GRACE_SECONDS`.
_CLOSE_SECONDS = 2.0


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
        self._readers = Readers()
        self._looking_up = asyncio.Lock()
        self._most_waiting, self._max_wait = most_waiting, max_wait
        self._openings: dict[str, _Opening] = {}
        # What is counted and could not be written; nothing is sent before it is.
        self._unwritten: dict[str, dict[str, Any]] = {}
        self._writing = asyncio.Lock()

    @property
    def depth(self) -> int:
        """Pages that are under way or wait."""
        return len(self._openings)

    async def open(self, asked: str) -> Page:
        """The page at an address.

        Raises:
            PageError: there is no such page, or none that may be given; in the words of `refusals`.
            ServiceBusyError: too many wait, or it took too long.
            HttpError: nothing may be sent, or nothing recorded; as searches.
        """
        url = str(page_url(asked, self._private))
        if (recorded := await self._recorded(url)) is not None:
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
        """Wait a little for what is counted, to record it; give up the rest."""
        openings = list(self._openings.values())
        if sent := [opening.task for opening in openings if opening.sent]:
            await asyncio.wait(sent, timeout=_CLOSE_SECONDS)
        for opening in openings:
            opening.task.cancel()
        await asyncio.gather(*(opening.task for opening in openings), return_exceptions=True)
        try:
            await self._write()
        except HttpError as error:
            logger.warning("%d pages that are counted are lost: %s", len(self._unwritten), error)
        self._readers.close()
        if self._fetcher is not None:
            await self._fetcher.close()

    async def _recorded(self, url: str) -> Page | None:
        """The page as it is recorded, None if it is to be fetched. Raises what it was refused with."""
        # At once: whoever has to fetch joins before another can.
        if not self._record.has_page(url):
            if self._fetcher is None:
                raise not_recorded(url, self._record.path)
            return None
        try:
            async with self._looking_up:  # one after the other: each may have megabytes
                entry = await asyncio.to_thread(self._record.page, url)
        except AssetError as error:
            raise record_spoilt(str(error)) from error
        if "page" in entry:
            return Page(**entry["page"])
        refusal = PageError(**entry["refusal"])
        if refusal.may_pass and self._fetcher is not None:
            return None
        raise refusal

    def _join(self, url: str) -> _Opening:
        opening = self._openings.get(url)
        if opening is None:
            if self.depth >= self._most_waiting:
                told = f"{self.depth} pages are waiting and the limit is {self._most_waiting}; try again later"
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

        async def before_it_is_sent() -> None:
            await self._write()
            opening.sent = True

        await self._write()
        if (recorded := await self._recorded(url)) is not None:  # since this moment
            return recorded
        try:
            await self._readers.require()
            async with self._fetcher.fetch(URL(url), before_it_is_sent) as fetched:
                page = await self._readers.read(fetched)
        except PageError as error:
            await self._keep_refusal(url, error)
            raise
        except HttpError:
            raise
        except Exception as error:  # whatever its host made of it: other pages may be asked for with it
            logger.exception("the page at %s", url)
            refusal = failed(f"the retriever could not take it ({type(error).__name__}); see its log")
            await self._keep_refusal(url, refusal)
            raise refusal from error
        await self._keep(url, {"page": {"url": page.url, "title": page.title, "text": page.text}})
        return page

    async def _keep_refusal(self, url: str, error: PageError) -> None:
        if error.is_outcome:
            await self._keep(url, {"refusal": {"status": error.status, "error": error.error, "message": str(error)}})

    async def _keep(self, url: str, outcome: dict[str, Any]) -> None:
        self._unwritten[url] = outcome
        await self._write()

    async def _write(self) -> None:
        """Record what is counted. Raises HttpError, and tries again next time."""
        async with self._writing:
            for url, outcome in list(self._unwritten.items()):
                try:
                    await asyncio.to_thread(self._record.add_page, url, outcome)
                except OSError as error:
                    raise disk_full(self._record.path, error) from error
                del self._unwritten[url]
