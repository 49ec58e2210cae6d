"""`/livez` and `/readyz`; vLLM itself answers `/health` and `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from research.schemas import ServiceStatus

router = APIRouter(tags=["health"])


@router.get("/livez")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"model": ServiceStatus}})
async def ready(request: Request, response: Response) -> ServiceStatus:
    """The engine is up and weights are loaded; vLLM opens the port only then."""
    if fault := request.app.state.research_updates.fault:
        response.status_code = 503
        return ServiceStatus(status="failed", detail=fault)
    try:
        await request.app.state.engine_client.check_health()
    except Exception as error:
        response.status_code = 503
        return ServiceStatus(status="failed", detail=str(error))
    return ServiceStatus(status="ready", detail=f"weight version {request.app.state.research_updates.version}")
