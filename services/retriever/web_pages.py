"""Pages of the web for the routes that open what a search has found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import orjson

from research.errors import ServiceBusyError
from services.retriever.api.compat_search import PATIENCE_SECONDS, loaded_index, still_loading
from services.retriever.index.passage_lookup import Record
from services.retriever.web.pages.refusals import PageError
from services.retriever.web_retriever import WebRetriever
from services.web.errors import HttpError

logger = logging.getLogger(__name__)


class WebPages:
    """`PageSource` of the web: the id of a page is its address.

    Args:
        patience: seconds that a request waits while the retriever loads.
    """

    def __init__(self, retriever: WebRetriever, patience: float = PATIENCE_SECONDS) -> None:
        self._retriever, self._patience = retriever, patience

    async def page(self, own_id: str) -> list[Record]:
        """Raises PageError with why there is none, and what searches raise."""
        await self._require_loaded()
        return [await self._open(own_id)]

    async def access(self, urls: Sequence[str]) -> list[list[Record]]:
        """What is wrong with one page is in the log: its clients know only pages and none.

        Raises:
            HttpError: none can be given, as searches are refused; 503 if too many wait.
        """
        await self._require_loaded()
        asked = list(dict.fromkeys(urls))
        pages: dict[str, list[Record]] = {}
        for url, outcome in zip(
            asked, await asyncio.gather(*map(self._open, asked), return_exceptions=True), strict=True
        ):
            if isinstance(outcome, PageError):
                logger.info("no page at %r: %s", url[:200], outcome)
                pages[url] = []
            elif isinstance(outcome, ServiceBusyError):
                raise HttpError(503, "busy", str(outcome), self._retriever.retry_headers(), reason=outcome.reason)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                pages[url] = [outcome]
        return [pages[url] for url in urls]

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
