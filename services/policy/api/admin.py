"""Routes that change or inspect weights. They exist only if an admin token is set, and each requires it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi import APIRouter, Depends
from vllm.entrypoints.rl.online.api_router import router as vllm_rl_router

from research.schemas import BroadcastOffer, BroadcastRequest, ErrorBody, WeightsRequest, WeightsResponse, WeightsStatus
from services.policy.service import PolicyService
from services.policy.weights.checkpoint_checks import TensorSpec
from services.policy.weights.updates import UpdateFailedError, UpdateTimedOutError
from services.policy.weights.worker_rpc import EngineHangsError
from services.web.errors import HttpError, ValidationRoute

_HARMLESS = frozenset({"/is_paused", "/abort_requests", "/weight_info"})
_PAUSING = frozenset({"/pause", "/resume"})
VLLM_ADMIN_PATHS = _HARMLESS | _PAUSING

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (401, 422, 500, 504)}


def admin_routes(service: PolicyService) -> APIRouter:
    """Our weight routes and some of vLLM's RL routes; include them behind the admin token only.

    vLLM's own update routes are excluded: with the file engine they would load any path that the server can read.
    `/admin/weights` does their work within the configured folder, in one transaction.
    """
    router = APIRouter(tags=["admin"])
    router.include_router(_weight_routes(service))
    router.include_router(_of_vllm(_HARMLESS))
    whole = Depends(lambda: _require_complete_weights(service))
    router.include_router(_of_vllm(_PAUSING), dependencies=[whole])
    return router


def _of_vllm(paths: Collection[str]) -> APIRouter:
    return APIRouter(routes=[route for route in vllm_rl_router.routes if getattr(route, "path", "") in paths])


def _require_complete_weights(service: PolicyService) -> None:
    """Refuse to resume (or to pause in another mode), because half-loaded weights must not answer."""
    if service.updates.busy:
        raise HttpError(409, "updating", "a weight update is in progress; try again when it is done")
    if service.updates.fault:
        raise HttpError(409, "weights_broken", service.updates.fault)


def _weight_routes(service: PolicyService) -> APIRouter:
    router = APIRouter(prefix="/admin", route_class=ValidationRoute)

    @router.post("/weights", responses=_ERRORS)
    async def update_weights(body: WeightsRequest) -> WeightsResponse:
        """Serve the weights of a checkpoint from now on; requests in flight freeze during the update, none is lost."""
        try:
            seconds = await service.updates.apply(body.path, body.version)
        except UpdateFailedError as error:
            raise _failed(error) from error
        return WeightsResponse(version=service.updates.version, seconds=seconds)

    @router.post("/weights/offer", responses=_ERRORS)
    async def consider_weights(body: BroadcastOffer) -> WeightsStatus:
        """Whether this server would take such weights by broadcast; nothing changes. Who refuses, joins no group."""
        try:
            await service.updates.consider(_specs(body))
        except UpdateFailedError as error:
            raise _failed(error) from error
        return _status(service)

    @router.post("/weights/broadcast", responses=_ERRORS)
    async def receive_weights(body: BroadcastRequest) -> WeightsResponse:
        """Serve weights that the trainer broadcasts by NCCL to the GPUs of all servers while their requests wait."""
        try:
            seconds = await service.updates.receive(
                body.group_id, body.first_rank, body.ranks, _specs(body), body.version
            )
        except UpdateFailedError as error:
            raise _failed(error) from error
        return WeightsResponse(version=service.updates.version, seconds=seconds)

    @router.get("/weights")
    async def served_weights() -> WeightsStatus:
        """Which weights are served."""
        return _status(service)

    @router.get("/weights/digests", responses=_ERRORS)
    async def weight_digests() -> dict[str, str]:
        """SHA-256 of each weight in the form used for computing; equal digests mean equal weights."""
        try:
            return await service.weight_digests()
        except EngineHangsError as error:
            raise HttpError(504, "engine_hangs", str(error)) from error

    return router


def _failed(error: UpdateFailedError) -> HttpError:
    if isinstance(error, UpdateTimedOutError):
        return HttpError(504, "update_timed_out", str(error))
    return HttpError(500, "update_failed", str(error))


def _specs(body: BroadcastOffer) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in body.tensors.items()}


def _status(service: PolicyService) -> WeightsStatus:
    updates = service.updates
    return WeightsStatus(
        version=updates.version,
        source=str(updates.source),
        workers=service.workers,
        fault=updates.fault,
        updating=updates.busy,
    )
