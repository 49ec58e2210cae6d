"""`/livez` and `/readyz` of every service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response

from research.schemas import ErrorBody, ServiceStatus
from services.web.errors import HttpError


def health_routes(
    status: Callable[[], Awaitable[ServiceStatus]], stuck: Callable[[], str | None] = lambda: None
) -> APIRouter:
    """The two routes.

    Args:
        status: whether the service is ready, and if not, why.
        stuck: what hangs for so long that only a restart helps, or None.
    """
    router = APIRouter(tags=["health"])

    @router.get("/livez", responses={503: {"model": ErrorBody}})
    async def live() -> dict[str, str]:
        """Whether the process works; if not, 503 with what hangs. Without an answer, its event loop hangs."""
        if (what := stuck()) is not None:
            raise HttpError(503, "stuck", what)
        return {"status": "alive"}

    @router.get("/readyz", responses={503: {"model": ServiceStatus}})
    async def ready(response: Response) -> ServiceStatus:
        """Whether the service is ready; if not, 503 with the reason."""
        found = await status()
        response.status_code = 200 if found.status == "ready" else 503
        return found

    return router
