"""Places that requests share in turn, so that one that wants many makes no other wait for all of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A semaphore whose places go to the waiting requests in turn, one each.

    Args:
        places: taken at once, of all requests together.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[object, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, request: object) -> AsyncIterator[None]:
        """Wait for a place for this request, and hold it while the block runs."""
        if self._free:
            self._free -= 1
        else:
            await self._given(request)
        try:
            yield
        finally:
            self._pass_on()

    async def _given(self, request: object) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(request, deque()).append(waiting)
        try:
            await waiting
        except asyncio.CancelledError:
            if not waiting.cancelled():
                self._pass_on()  # the place came together with the end of who waited
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            request, places = next(iter(self._waiting.items()))
            waiting = places.popleft()
            if places:
                self._waiting.move_to_end(request)
            else:
                del self._waiting[request]
            if not waiting.cancelled():
                waiting.set_result(None)
                return
        self._free += 1
