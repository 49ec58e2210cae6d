"""`/livez` and `/readyz` of every service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response

from research.schemas import ServiceStatus


def health_routes(status: Callable[[], Awaitable[ServiceStatus]]) -> APIRouter:
    """The two routes; `status` returns whether the service is ready, and if not, why."""
    router = APIRouter(tags=["health"])

    @router.get("/livez")
    async def live() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "alive"}

    @router.get("/readyz", responses={503: {"model": ServiceStatus}})
    async def ready(response: Response) -> ServiceStatus:
        """Whether the service is ready; if not, 503 with the reason."""
        found = await status()
        response.status_code = 200 if found.status == "ready" else 503
        return found

    return router
