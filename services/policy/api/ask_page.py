"""The ask page at the policy's root, and the state that it shows."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from research.errors import ConfigurationError, ServiceError
from research.schemas import PolicyInfo, ServiceStatus
from services.policy.api.notice import notice
from services.policy.openai.format import AGENT
from services.policy.service import PolicyService
from services.policy.settings_variable import NUMBERS_VARIABLE
from services.web.pages import page_headers

_PAGE = Path(__file__).with_name("ask_page.html").read_text(encoding="utf-8")

_HEADERS = page_headers(_PAGE)


def page_routes(service: PolicyService) -> APIRouter:
    """The page at `/`, and `/info`, which the page and other clients read."""
    router = APIRouter()

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        """The page to ask from; it shows each step of the answer as it happens."""
        return HTMLResponse(_PAGE, headers=_HEADERS)

    @router.get("/info", tags=["health"])
    async def info() -> PolicyInfo:
        """What is served, and whether the retriever answers."""
        return await _info(service)

    return router


async def _info(service: PolicyService) -> PolicyInfo:
    settings, updates, agent = service.settings, service.updates, service.answers.agent
    try:
        await service.retriever.check_ready()
        status = ServiceStatus(status="ready")
    except (ServiceError, ConfigurationError):
        # `/info` needs no key, so it gives no addresses; `/answer` gives the whole reason.
        status = ServiceStatus(status="failed", detail="the retriever is not ready")
    return PolicyInfo(
        model=settings.model.name,
        agent=AGENT,
        weight_version=updates.version,
        weights=updates.identity.fingerprint,
        dtype=settings.model.dtype,
        number_format=os.environ.get(NUMBERS_VARIABLE, ""),
        context_length=agent.context_length,
        prompt=agent.prompt.sha256,
        trained_prompt=updates.identity.trained_prompt,
        run=updates.identity.run,
        trained=updates.identity.trained,
        quality=await asyncio.to_thread(updates.source.quality),
        notice=notice(settings, trained=updates.identity.trained),
        retriever=status,
    )
