"""The trainer's progress, for the ask page, and the order to start training, behind the admin token."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import APIRouter

from research.schemas import ErrorBody, TrainingState
from research.settings import Settings
from services.web.auth import ADMIN_TOKEN_VARIABLE, environment_secret
from services.web.errors import HttpError, ValidationRoute

_SECONDS = 3.0


def training_routes(settings: Settings) -> APIRouter:
    """The public part: the progress of the run."""
    router = APIRouter(tags=["training"], route_class=ValidationRoute)

    @router.get("/training")
    async def training() -> TrainingState:
        """Progress of the run; `reachable` is false if no trainer answers."""
        try:
            return _state(await _ask(settings, "GET", "/status"))
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return TrainingState(reachable=False)

    return router


def training_control_routes(settings: Settings) -> APIRouter:
    """The route that starts training; include it behind the admin token only."""
    router = APIRouter(prefix="/admin", tags=["admin"], route_class=ValidationRoute)

    @router.post("/training", responses={status: {"model": ErrorBody} for status in (401, 409, 502)})
    async def start_training() -> TrainingState:
        """Start or continue the trainer's run; the trainer publishes its weights to this server by itself."""
        try:
            return _state(await _ask(settings, "POST", "/run/start"))
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 409:
                raise HttpError(409, "conflict", "the run is already in progress") from error
            raise HttpError(502, "trainer_refused", f"the trainer answered {error.response.status_code}") from error
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise HttpError(502, "trainer_away", "the trainer does not answer; start it with `research up`") from error

    return router


async def _ask(settings: Settings, method: str, path: str) -> dict[str, Any]:
    token = environment_secret(ADMIN_TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token and method == "POST" else {}
    async with httpx.AsyncClient(base_url=settings.endpoints.trainer_url, timeout=_SECONDS, trust_env=False) as client:
        answer = await client.request(method, path, headers=headers)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


def _state(status: dict[str, Any]) -> TrainingState:
    """The public part of the trainer's status: no log, no address."""
    names = ("run", "phase", "step", "steps", "done", "total", "seconds_left")
    return TrainingState(reachable=True, **{name: status[name] for name in names})
