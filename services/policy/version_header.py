"""Every answer says which weights are served."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "Research-Weight-Version"


class WeightVersionHeader:
    """ASGI middleware that adds the version served when the answer begins; a long answer may see another one later."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_version(message: Message) -> None:
            updates = getattr(scope["app"].state, "research_updates", None) if "app" in scope else None
            if message["type"] == "http.response.start" and updates is not None:
                MutableHeaders(scope=message)[HEADER] = updates.version
            await send(message)

        await self._app(scope, receive, with_version)
