"""Every response names the served weights, and says so if they are untrained."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.policy.api.notice import NOTICE_HEADER, notice
from services.policy.service import PolicyService

HEADER = "Research-Weight-Version"


class WeightVersionHeader:
    """ASGI middleware that adds the notice, if any, and the version served when the response begins.

    A long response may see a later version.
    """

    def __init__(self, app: ASGIApp, service: PolicyService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_version(message: Message) -> None:
            if message["type"] == "http.response.start" and self._service.is_open:
                updates, headers = self._service.updates, MutableHeaders(scope=message)
                headers[HEADER] = updates.version
                if text := notice(self._service.settings, trained=updates.identity.trained):
                    headers[NOTICE_HEADER] = text
            await send(message)

        await self._app(scope, receive, with_version)
