"""Every answer says which weights are served, and those of untrained ones say so."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.policy.api.notice import NOTICE_HEADER, notice

HEADER = "Research-Weight-Version"


class WeightVersionHeader:
    """ASGI middleware that adds the version served when the answer begins (a long answer may see another one later),
    and the notice, if there is one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_version(message: Message) -> None:
            state = scope["app"].state if "app" in scope else None
            updates = getattr(state, "research_updates", None)
            if message["type"] == "http.response.start" and updates is not None:
                headers = MutableHeaders(scope=message)
                headers[HEADER] = updates.version
                settings = getattr(state, "research_settings", None)
                if settings and (text := notice(settings, trained=updates.identity.trained)):
                    headers[NOTICE_HEADER] = text
            await send(message)

        await self._app(scope, receive, with_version)
