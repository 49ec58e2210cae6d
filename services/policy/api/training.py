"""The trainer's progress, for the ask page, and the order to start training, behind the admin token."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from research.errors import ServiceError
from research.http.service import HttpService
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
            return await _ask(settings, "GET", "/status")
        except ServiceError:
            return TrainingState(reachable=False)

    return router


def training_control_routes(settings: Settings) -> APIRouter:
    """The route that starts training; include it behind the admin token only."""
    router = APIRouter(prefix="/admin", tags=["admin"], route_class=ValidationRoute)

    @router.post("/training", responses={status: {"model": ErrorBody} for status in (401, 409, 502)})
    async def start_training() -> TrainingState:
        """Start or continue the trainer's run; the trainer publishes its weights to this server by itself."""
        try:
            return await _ask(settings, "POST", "/run/start")
        except ServiceError as error:
            if error.status == 409:
                raise HttpError(409, "conflict", "the run is already in progress") from error
            if error.status is not None:
                raise HttpError(502, "trainer_refused", f"the trainer answered {error.status}") from error
            raise HttpError(502, "trainer_away", "the trainer does not answer; start it with `research up`") from error

    return router


class _Status(TypedDict):
    """The public part of the trainer's status: no log, no address."""

    run: str
    phase: str
    step: int
    steps: int
    done: int
    total: int
    seconds_left: float | None


class _Trainer(HttpService):
    kind = "trainer"


async def _ask(settings: Settings, method: str, path: str) -> TrainingState:
    """The state of the run; raises ServiceError if the trainer does not answer or refuses."""
    token = environment_secret(ADMIN_TOKEN_VARIABLE) if method == "POST" else None
    url = settings.endpoints.trainer_url
    async with _Trainer(url, name="the trainer", timeout=_SECONDS, retries=0, token=token) as trainer:
        return TrainingState(reachable=True, **await trainer.request_as(TypeAdapter(_Status), method, path))
