"""An ASGI layer that refuses searches while the queue is full, before their bodies are read: refusing must be cheap.

A server that parses what it then refuses has no time left for what it admitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from services.web.errors import error_response


@dataclass(frozen=True, slots=True)
class _Refused:
    """Stands in for the route, which was not looked up, because requests are counted by route."""

    path: str


class Shedding:
    """Refuses requests in place of the routes.

    Args:
        app: the protected app.
        statuses: the routes, and the status that each refuses with.
        is_full: whether the queue is full.
        retry_headers: when to try again.
        count: called for each refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        statuses: Mapping[str, int],
        is_full: Callable[[], bool],
        retry_headers: Callable[[], dict[str, str]],
        count: Callable[[], None],
    ) -> None:
        self._app = app
        self._statuses = statuses
        self._is_full = is_full
        self._retry_headers = retry_headers
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = self._statuses.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if status is None or not self._is_full():
            await self._app(scope, receive, send)
            return
        self._count()
        scope["route"] = _Refused(scope["path"])
        message = "the queue is full; try again later"
        await error_response(status, "busy", message, self._retry_headers(), reason="queue_full")(scope, receive, send)
