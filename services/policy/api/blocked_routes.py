"""Routes of vLLM that we block, because neither the API key nor the admin token would guard them."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from services.web.errors import error_response

# vLLM's API key guards /v1, /v2, /inference and /cohere only. These change state, or are inference by another name.
BLOCKED_PATHS = frozenset({"/scale_elastic_ep", "/is_scaling_elastic_ep", "/generative_scoring", "/invocations"})


class BlockedRoutes:
    """ASGI middleware that answers 404 before any route is looked up, so that nothing registered later opens one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/") in BLOCKED_PATHS:
            await error_response(404, "not_found", "this route is disabled")(scope, receive, send)
            return
        await self._app(scope, receive, send)
