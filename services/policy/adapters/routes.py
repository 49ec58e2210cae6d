"""Admin routes of LoRA adapters: load one under a name, list them, unload one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from research.schemas import AdapterRequest, AdaptersStatus, ErrorBody
from services.policy.adapters.adapters import AdapterFailedError, Adapters
from services.web.problems import HttpError, ValidationRoute

router = APIRouter(
    prefix="/admin/adapters",
    tags=["admin"],
    route_class=ValidationRoute,
    responses={status: {"model": ErrorBody} for status in (401, 422, 500)},
)


def _adapters(request: Request) -> Adapters:
    adapters: Adapters = request.app.state.research_adapters
    return adapters


Loaded = Annotated[Adapters, Depends(_adapters)]
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="the model's name from then on")]


@router.put("/{name}")
async def load_adapter(name: Name, body: AdapterRequest, adapters: Loaded) -> AdaptersStatus:
    """Serve a LoRA adapter as the model `name`, and the agent with it as `research:name`; nobody has to wait."""
    try:
        await adapters.load(name, body.path)
    except AdapterFailedError as error:
        raise HttpError(500, "adapter_failed", str(error)) from error
    return _status(adapters)


@router.delete("/{name}")
async def unload_adapter(name: Name, adapters: Loaded) -> AdaptersStatus:
    """Serve an adapter no longer."""
    await adapters.unload(name)
    return _status(adapters)


@router.get("")
async def loaded_adapters(adapters: Loaded) -> AdaptersStatus:
    """Which adapters are served, by name, and from where."""
    return _status(adapters)


def _status(adapters: Adapters) -> AdaptersStatus:
    return AdaptersStatus(adapters={name: str(source) for name, source in adapters.sources.items()})
