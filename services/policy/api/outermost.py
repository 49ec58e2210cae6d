"""What stands around all of vLLM's server, its own key check and CORS included."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from services.policy.settings_variable import settings_from_environment
from services.web.known_hosts import KnownHosts, own_names
from services.web.plain_paths import PlainPaths
from services.web.telemetry.request_ids import RequestIds


class Outermost:
    """ASGI middleware that names requests, logs those that are refused, and refuses unknown hosts.

    vLLM adds its own layers after those of a plugin, so around them; this one it is given by `--middleware`, the last.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = RequestIds(KnownHosts(PlainPaths(app), own_names(settings_from_environment())))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
