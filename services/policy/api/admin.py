"""Routes that change or inspect weights. They exist only where an admin token is set, and each asks for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from vllm.entrypoints.rl.online.api_router import router as vllm_rl_router

from research.schemas import BroadcastRequest, ErrorBody, WeightsRequest, WeightsResponse, WeightsStatus
from services.policy.adapters import routes as adapter_routes
from services.policy.api import training as training_routes
from services.policy.weights.checkpoint_checks import TensorSpec
from services.policy.weights.updates import UpdateFailedError, WeightUpdates
from services.web.auth import ADMIN_TOKEN_VARIABLE, environment_secret, require_bearer
from services.web.problems import HttpError, ValidationRoute

_HARMLESS = frozenset({"/is_paused", "/abort_requests", "/weight_info"})
_PAUSING = frozenset({"/pause", "/resume"})

router = APIRouter(prefix="/admin", tags=["admin"], route_class=ValidationRoute)


def attach_admin_routes(app: FastAPI) -> bool:
    """Add our weight route and some of vLLM's RL routes behind the admin token; without a token, add nothing.

    vLLM's own update routes stay out: with the file engine they would load any path that the server can read.
    `/admin/weights` does their work within the configured folder, and as one transaction.
    """
    token = environment_secret(ADMIN_TOKEN_VARIABLE)
    if token is None:
        return False
    guard = [Depends(require_bearer(token, ADMIN_TOKEN_VARIABLE))]
    app.include_router(router, dependencies=guard)
    app.include_router(adapter_routes.router, dependencies=guard)
    app.include_router(training_routes.control, dependencies=guard)
    app.include_router(_of_vllm(_HARMLESS), dependencies=guard, tags=["admin"])
    app.include_router(_of_vllm(_PAUSING), dependencies=[*guard, Depends(_require_complete_weights)], tags=["admin"])
    return True


def _of_vllm(paths: Collection[str]) -> APIRouter:
    return APIRouter(routes=[route for route in vllm_rl_router.routes if getattr(route, "path", "") in paths])


def _updates(request: Request) -> WeightUpdates:
    updates: WeightUpdates = request.app.state.research_updates
    return updates


Updates = Annotated[WeightUpdates, Depends(_updates)]


def _require_complete_weights(updates: Updates) -> None:
    """Half-loaded weights must not answer, whoever resumes (or pauses in another way)."""
    if updates.busy:
        raise HttpError(409, "updating", "weights are being exchanged; try again when that is done")
    if updates.fault:
        raise HttpError(409, "weights_broken", updates.fault)


@router.post("/weights", responses={status: {"model": ErrorBody} for status in (401, 422, 500)})
async def update_weights(body: WeightsRequest, updates: Updates) -> WeightsResponse:
    """Serve the weights of a checkpoint from now on; requests in flight are frozen meanwhile and none is lost."""
    try:
        seconds = await updates.apply(body.path, body.version)
    except UpdateFailedError as error:
        raise HttpError(500, "update_failed", str(error)) from error
    return WeightsResponse(version=updates.version, seconds=seconds)


@router.post("/weights/broadcast", responses={status: {"model": ErrorBody} for status in (401, 422, 500)})
async def receive_weights(body: BroadcastRequest, updates: Updates) -> WeightsResponse:
    """Serve the weights that the trainer broadcasts to this server's GPUs by NCCL while this request waits."""
    tensors = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in body.tensors.items()}
    try:
        seconds = await updates.receive(body.group_id, tensors, body.version)
    except UpdateFailedError as error:
        raise HttpError(500, "update_failed", str(error)) from error
    return WeightsResponse(version=updates.version, seconds=seconds)


@router.get("/weights")
async def served_weights(request: Request, updates: Updates) -> WeightsStatus:
    """Which weights are served."""
    workers: int = request.app.state.vllm_config.parallel_config.world_size
    return WeightsStatus(version=updates.version, source=str(updates.source), workers=workers)


@router.get("/weights/digests")
async def weight_digests(request: Request) -> dict[str, str]:
    """SHA-256 of each weight as it computes; equal digests mean equal weights."""
    workers: list[dict[str, str]] = await request.app.state.engine_client.collective_rpc("research_weight_digests")
    return {name: digest for worker in workers for name, digest in worker.items()}
