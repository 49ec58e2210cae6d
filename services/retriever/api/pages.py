"""What is read under an id or a url; here of the corpus: no search, and nothing from any network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import orjson

from services.retriever.api.compat_search import PATIENCE_SECONDS, loaded_index, still_loading
from services.retriever.batching.watch import StageWatch
from services.retriever.index.passage_lookup import PassageLookup, Record
from services.retriever.retriever import READING_SECONDS
from services.retriever.serving import Serving
from services.web.errors import HttpError

T = TypeVar("T")

MOST_WAITING = 100


class PageSource(Protocol):
    """What is served as pages. A page is its passages; none if there is no such page."""

    async def page(self, own_id: str) -> list[Record]:
        """The page with that url, or the passage with that id. Raises HttpError, also if it knows why there is none."""
        ...

    async def access(self, urls: Sequence[str]) -> list[list[Record]]:
        """The pages with these urls, as `/access` asks for them. Raises HttpError if none can be given now."""
        ...


class Pages:
    """Looks up in a thread of its own, one request after the other.

    Args:
        retriever: of an index.
        patience: seconds that a request waits while the retriever loads, and for its turn: the first request of an
            index reads all of it.
        watch: is told of what is read.
    """

    def __init__(
        self, retriever: Serving[Any], patience: float = PATIENCE_SECONDS, watch: StageWatch | None = None
    ) -> None:
        self._retriever = retriever
        self._patience = patience
        self._watch = watch or StageWatch()
        self._thread = ThreadPoolExecutor(1, "lookup")
        self._waiting = 0

    def close(self) -> None:
        """End the thread, after what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def page(self, own_id: str) -> list[Record]:
        passage = await self.with_id(own_id)
        [found] = [[passage]] if passage is not None else await self.with_urls([own_id])
        return found

    async def access(self, urls: Sequence[str]) -> list[list[Record]]:
        # As the servers of its clients do: links within some wikis are written so; a corpus may have either form.
        known = {url: url.replace("index.php/", "index.php?title=") for url in urls}
        asked = list(dict.fromkeys([*known, *known.values()]))
        page = dict(zip(asked, await self.with_urls(asked), strict=True))
        return [page[url] or page[known[url]] for url in urls]

    async def with_id(self, own_id: str) -> Record | None:
        """The passage of that id, or None. Raises what `with_urls` raises."""
        return await self._look_up(lambda lookup: lookup.with_id(own_id))

    async def with_urls(self, urls: Sequence[str]) -> list[list[Record]]:
        """The passages of each page, in the order of the corpus; none if it is unknown.

        Raises:
            HttpError: 503 if the retriever does not get ready in time, or is busy; 422 if the pages are too large.
        """
        most = self._retriever.settings.retriever.max_answer_bytes

        def pages(lookup: PassageLookup) -> list[list[Record]]:
            found, size = [], 0
            for url in urls:
                page = lookup.with_url(url)
                size += sum(len(record["text"]) for record in page)
                if size > most:
                    raise too_large(most)
                found.append(page)
            return found

        return await self._look_up(pages)

    async def _look_up(self, work: Callable[[PassageLookup], T]) -> T:
        if self._waiting >= MOST_WAITING:
            raise self._busy(f"{self._waiting} requests for pages are waiting; try again later")

        def watched(lookup: PassageLookup) -> T:
            with self._watch.at_work("reading pages", READING_SECONDS):
                return work(lookup)

        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                index = await loaded_index(self._retriever)
                return await asyncio.get_running_loop().run_in_executor(self._thread, watched, index.lookup)
        except TimeoutError as error:
            told = f"no page was found within {self._patience:g} s; try again later"
            raise still_loading(self._retriever) or self._busy(told) from error
        finally:
            self._waiting -= 1

    def _busy(self, told: str) -> HttpError:
        return HttpError(503, "busy", told, self._retriever.retry_headers(), reason="queue_full")


def too_large(most: int) -> HttpError:
    """Pages of more than so many bytes."""
    return HttpError(422, "answer_too_large", f"the pages are larger than {most} bytes; ask for fewer at once")


def fields_of(passage: Mapping[str, str | float]) -> dict[str, Any]:
    """What else the row of the corpus says."""
    fields: dict[str, Any] = orjson.loads(str(passage.get("fields", "{}")))
    return fields


def url_of(fields: Mapping[str, Any]) -> str:
    """The url that a row has; empty if it has none."""
    url = fields.get("url")
    return url if isinstance(url, str) else ""


def text_of(page: Sequence[Record]) -> str:
    """All of a page."""
    return "\n".join(passage["text"] for passage in page)
