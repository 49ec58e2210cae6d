"""Pages of the web for the routes that open what a search has found."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence

import orjson

from research.errors import ServiceBusyError
from services.retriever.api.compat_search import PATIENCE_SECONDS, loaded_index, still_loading
from services.retriever.api.pages import MOST_WAITING, too_large
from services.retriever.index.passage_lookup import Record
from services.retriever.web.pages.refusals import PageError
from services.retriever.web_retriever import WebRetriever
from services.web.errors import HttpError

logger = logging.getLogger(__name__)

# Memory of pages that requests may wait with, in answers of the most bytes; one alone may have 4 bytes a character.
_HELD_ANSWERS = 8


class WebPages:
    """`PageSource` of the web: the id of a page is its address.

    Args:
        patience: seconds that a request waits while the retriever loads.
    """

    def __init__(self, retriever: WebRetriever, patience: float = PATIENCE_SECONDS) -> None:
        self._retriever, self._patience = retriever, patience
        self._waiting = 0
        self._held = 0

    async def page(self, own_id: str) -> list[Record]:
        """Raises PageError with why there is none, and what searches raise."""
        await self._require_loaded()
        return [await self._open(own_id)]

    async def access(self, urls: Sequence[str]) -> list[list[Record]]:
        """What is wrong with one page is in the log: its clients know only pages and none.

        Raises:
            HttpError: none can be given, as searches are refused; 503 if too many wait, or with too much; 422 if they
                are too large.
        """
        await self._require_loaded()
        if self._waiting >= MOST_WAITING:
            raise self._busy(f"{self._waiting} requests for pages are waiting; try again later", "queue_full")
        self._waiting += 1
        try:
            found = await self._pages(list(dict.fromkeys(urls)))
        except ServiceBusyError as error:
            raise self._busy(str(error), error.reason) from error
        finally:
            self._waiting -= 1
        return [found[url] for url in urls]

    async def _pages(self, urls: Sequence[str]) -> dict[str, list[Record]]:
        """Every page, or the first error that concerns all of them."""
        most, size, held = self._retriever.settings.retriever.max_answer_bytes, 0, 0

        async def page(url: str) -> list[Record]:
            nonlocal size, held
            try:
                record = await self._open(url)
            except PageError as error:
                logger.info("no page at %r: %s", url[:200], error)
                return []
            size += len(record["text"])
            if size > most:
                raise too_large(most)
            memory = sys.getsizeof(record["text"])
            if self._held + memory > _HELD_ANSWERS * most:
                raise self._busy("other requests wait with as many pages as fit; try again later", "queue_full")
            held += memory
            self._held += memory
            return [record]

        asked = [asyncio.create_task(page(url)) for url in urls]
        try:
            return dict(zip(urls, await asyncio.gather(*asked), strict=True))
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            self._held -= held

    async def _open(self, url: str) -> Record:
        page = await self._retriever.open(url)
        fields = orjson.dumps({"url": page.url}).decode()
        return {"id": url, "title": page.title, "text": page.text, "fields": fields}

    async def _require_loaded(self) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await loaded_index(self._retriever)
        except TimeoutError as error:
            if (refusal := still_loading(self._retriever)) is None:
                raise
            raise refusal from error

    def _busy(self, told: str, reason: str) -> HttpError:
        return HttpError(503, "busy", told, self._retriever.retry_headers(), reason=reason)
