"""What the corpus has under an id or a url: no search, and nothing from any network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from services.retriever.api.compat_search import PATIENCE_SECONDS, loaded_index, still_loading
from services.retriever.index.passage_lookup import PassageLookup, Record
from services.retriever.serving import Serving
from services.web.errors import HttpError

T = TypeVar("T")

_MOST_WAITING = 100


class Pages:
    """Looks up in a thread of its own, one request after the other.

    Args:
        patience: seconds that a request waits while the retriever loads, and for its turn: the first request of an
            index reads all of it.
    """

    def __init__(self, retriever: Serving[Any], patience: float = PATIENCE_SECONDS) -> None:
        self._retriever = retriever
        self._patience = patience
        self._thread = ThreadPoolExecutor(1, "lookup")
        self._waiting = 0

    def close(self) -> None:
        """End the thread, after what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def with_id(self, own_id: str) -> Record | None:
        """The passage of that id, or None. Raises what `with_urls` raises."""
        return await self._look_up(lambda lookup: lookup.with_id(own_id))

    async def with_urls(self, urls: Sequence[str]) -> list[list[Record]]:
        """The passages of each page, in the order of the corpus; none if it is unknown.

        Raises:
            HttpError: 503 if the retriever does not get ready in time, or is busy; 422 if the pages are too large, or
                no index is served.
        """
        most = self._retriever.settings.retriever.max_answer_bytes

        def pages(lookup: PassageLookup) -> list[list[Record]]:
            found, size = [], 0
            for url in urls:
                page = lookup.with_url(url)
                size += sum(len(record["text"]) for record in page)
                if size > most:
                    told = f"the pages are larger than {most} bytes; ask for fewer at once"
                    raise HttpError(422, "answer_too_large", told)
                found.append(page)
            return found

        return await self._look_up(pages)

    async def _look_up(self, work: Callable[[PassageLookup], T]) -> T:
        if self._waiting >= _MOST_WAITING:
            raise self._busy(f"{self._waiting} requests for pages are waiting; try again later")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                index = await loaded_index(self._retriever)
                lookup: PassageLookup | None = getattr(index, "lookup", None)
                if lookup is None:
                    raise HttpError(422, "no_corpus", "retriever.backend: the web is searched, so no corpus has pages")
                return await asyncio.get_running_loop().run_in_executor(self._thread, work, lookup)
        except TimeoutError as error:
            told = f"no page was found within {self._patience:g} s; try again later"
            raise still_loading(self._retriever) or self._busy(told) from error
        finally:
            self._waiting -= 1

    def _busy(self, told: str) -> HttpError:
        return HttpError(503, "busy", told, self._retriever.retry_headers(), reason="queue_full")
