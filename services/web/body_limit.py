"""Limits on the size of request bodies."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Refuses bodies while they arrive, before they fill memory.

    Args:
        app: the protected app.
        max_bytes: of one body; a larger one is refused with 413.
        max_held: of all bodies of unanswered requests together; what exceeds it is refused with 503. None: no limit.
        of_paths: the limit of one body below a path, where it is another than `max_bytes`.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        max_held: int | None = None,
        of_paths: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._of_paths = of_paths
        self._max_held = max_held
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, max_bytes = 0, self._max_bytes
        for start, limit in self._of_paths.items():
            if scope.get("path", "").startswith(start):
                max_bytes = limit

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._held += size
            if received > max_bytes:
                raise HTTPException(413, f"the body is larger than {max_bytes} bytes")
            if self._max_held is not None and self._held > self._max_held:
                told = f"bodies of {self._max_held} bytes are arriving; try again later"
                raise HTTPException(503, told, {"Retry-After": "1"})
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= received
