"""An ASGI layer around the routes: every answer counted and timed."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RequestTimer:
    """Tell `observe` the route and status of every answer, and the seconds until it began."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, int, float], None]) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A path that matched no route is whatever a stranger typed: no label for that.
                route = getattr(scope.get("route"), "path", "unknown")
                self._observe(route, message["status"], time.perf_counter() - begun)
            await send(message)

        await self._app(scope, receive, observed)
