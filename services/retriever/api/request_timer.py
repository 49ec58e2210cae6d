"""An ASGI layer around the routes that counts and times every response."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RequestTimer:
    """Passes `observe` the route and status of every response, and the seconds until it began."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, int, float], None]) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A path that matched no route is arbitrary client input, so it gets no label.
                route = getattr(scope.get("route"), "path", "unknown")
                self._observe(route, message["status"], time.perf_counter() - begun)
            await send(message)

        await self._app(scope, receive, observed)
