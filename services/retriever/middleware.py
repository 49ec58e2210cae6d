"""An ASGI layer around the routes: a count of every answer."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RequestCount:
    """Tell `count` the route and status of every answer."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A path that matched no route is whatever a stranger typed: no label for that.
                route = getattr(scope.get("route"), "path", "unknown")
                self._count(route, message["status"])
            await send(message)

        await self._app(scope, receive, counted)
