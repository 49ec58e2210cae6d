"""`/livez` and `/readyz` of every service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response

from research.schemas import ServiceStatus


def health_routes(status: Callable[[], Awaitable[ServiceStatus]]) -> APIRouter:
    """The two routes; `status` says whether the service does its work, and else why not."""
    router = APIRouter(tags=["health"])

    @router.get("/livez")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @router.get("/readyz", responses={503: {"model": ServiceStatus}})
    async def ready(response: Response) -> ServiceStatus:
        """Whether the service does its work; 503, with the reason, if not."""
        found = await status()
        response.status_code = 200 if found.status == "ready" else 503
        return found

    return router
