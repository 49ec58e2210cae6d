"""Admin routes of LoRA adapters: load one under a name, list them, unload one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from research.schemas import AdapterRequest, AdaptersStatus, ErrorBody
from services.policy.adapters.adapters import AdapterFailedError, Adapters
from services.policy.service import PolicyService
from services.web.errors import HttpError, ValidationRoute

Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name to serve it under")]


def adapter_routes(service: PolicyService) -> APIRouter:
    """The routes; include them behind the admin token only."""
    router = APIRouter(
        prefix="/admin/adapters",
        tags=["admin"],
        route_class=ValidationRoute,
        responses={status: {"model": ErrorBody} for status in (401, 422, 500)},
    )

    @router.put("/{name}")
    async def load_adapter(name: Name, body: AdapterRequest) -> AdaptersStatus:
        """Serve a LoRA adapter as the model `name`, and the agent with it as `research:name`; no request waits."""
        try:
            await service.adapters.load(name, body.path)
        except AdapterFailedError as error:
            raise HttpError(500, "adapter_failed", str(error)) from error
        return _status(service.adapters)

    @router.delete("/{name}")
    async def unload_adapter(name: Name) -> AdaptersStatus:
        """Stop serving an adapter; requests in flight keep it to their end."""
        await service.adapters.unload(name)
        return _status(service.adapters)

    @router.get("")
    async def loaded_adapters() -> AdaptersStatus:
        """List the served adapters by name, with their directories."""
        return _status(service.adapters)

    return router


def _status(adapters: Adapters) -> AdaptersStatus:
    return AdaptersStatus(adapters={name: str(source) for name, source in adapters.sources.items()})
