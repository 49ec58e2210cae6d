"""An ASGI layer that refuses paths with control characters.

A route matches its path with and without a newline after it (`$` of a regular expression), so `/tokenize%0A` would find
the route, and none of the layers that know paths by name: those that ask for a key, bound a body or close a route.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from services.web.errors import error_response


class PlainPaths:
    """Answers 404."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].isprintable():
            await error_response(404, "not_found", "the path has a control character")(scope, receive, send)
            return
        await self._app(scope, receive, send)
