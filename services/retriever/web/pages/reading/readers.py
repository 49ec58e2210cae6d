"""Several readers, so that a page which hangs one does not keep all others waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.retriever.web.pages.fetch import Fetched
from services.retriever.web.pages.reading.reader import Page, Reader
from services.web.errors import HttpError

_READERS = 2
_SECONDS = 15.0  # a page of the most bytes takes a few


class Readers:
    """Each reads one page at a time; the second is started only when two pages come at once."""

    def __init__(self) -> None:
        self._all = [Reader(_SECONDS) for _ in range(_READERS)]
        self._idle = list(self._all)
        self._places = asyncio.Semaphore(_READERS)

    async def require(self) -> None:
        """Raises HttpError if no page can be read."""
        if not any(reader.stands for reader in self._all):
            async with self._one() as reader:
                await reader.start()

    async def read(self, fetched: Fetched) -> Page:
        """As `Reader.read`."""
        async with self._one() as reader:
            try:
                await reader.start()
            except HttpError:
                if not any(each.stands for each in self._all):
                    raise
                async with self._one() as other:  # which is at another page
                    return await other.read(fetched)
            return await reader.read(fetched)

    def close(self) -> None:
        for reader in self._all:
            reader.close()

    @asynccontextmanager
    async def _one(self) -> AsyncIterator[Reader]:
        async with self._places:
            reader = max(self._idle, key=lambda each: each.stands)
            self._idle.remove(reader)
            try:
                yield reader
            finally:
                self._idle.append(reader)
