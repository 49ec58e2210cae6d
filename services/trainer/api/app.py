"""The trainer's HTTP API: health, status, metrics and, with an admin token, control."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse, HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import NonNegativeInt

from research.schemas import ServiceStatus
from services.trainer.api.addresses import without_addresses
from services.trainer.api.prometheus import render_metrics
from services.trainer.controller import RunController
from services.trainer.run_dir.lock import RunInUseError
from services.trainer.run_dir.run_dir import RunDirectory
from services.web.auth import admin_guard
from services.web.errors import HttpError, install_error_handlers
from services.web.health import health_routes
from services.web.pages import page_headers
from services.web.server import NO_DOCS_PAGES
from services.web.telemetry.refusals import shared_metrics

STEPS_AT_ONCE = 200  # an answer has at most some 600 KB
_PAGE = Path(__file__).with_name("status_page.html").read_text(encoding="utf-8")
_PAGE_HEADERS = page_headers(_PAGE)


def create_app(controller: RunController, run_dir: RunDirectory, *, returning: bool = False) -> FastAPI:
    """The app around one run, which starts on request.

    `returning`: follow the last order when the app starts.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if returning:
            controller.come_back()
        yield
        await controller.cancel()

    async def health() -> ServiceStatus:
        return ServiceStatus(status="ready", detail=str(controller.status.phase))

    app = FastAPI(title="Trainer", summary="Trains a search agent with GRPO.", lifespan=lifespan, **NO_DOCS_PAGES)
    install_error_handlers(app)
    app.include_router(health_routes(health, lambda: controller.stuck))
    app.include_router(observation_routes(controller, run_dir))
    if guard := admin_guard():
        app.include_router(control_routes(controller), dependencies=guard)
    return app


def observation_routes(controller: RunController, run_dir: RunDirectory) -> APIRouter:
    """What the run is doing and has done; open to each client that reaches the port."""
    router = APIRouter()

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers=_PAGE_HEADERS)

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """What the run is doing, and its last log lines."""
        return public(controller)

    @router.get("/steps", response_class=Response)
    def steps(after: NonNegativeInt | None = None) -> Response:
        """Metrics of finished steps: of the last 200, or of the first 200 after the one that is named."""
        entries = run_dir.metrics()
        if after is None:
            shown = entries[-STEPS_AT_ONCE:]
        else:
            shown = [entry for entry in entries if entry["step"] > after][:STEPS_AT_ONCE]
        return Response(orjson.dumps(shown), media_type="application/json")

    @router.get("/evaluations")
    def evaluations() -> dict[str, Any]:
        """Held-out figures of every evaluation so far."""
        return run_dir.evaluations()

    @router.get("/training.png", response_class=FileResponse, include_in_schema=False)
    def plot() -> FileResponse:
        path: Path = run_dir.directory / "training.png"
        if not path.is_file():
            raise HttpError(404, "not_found", "there is no plot yet; the run draws it when it finishes")
        return FileResponse(path, media_type="image/png")

    @router.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Prometheus metrics."""
        rendered = render_metrics(controller.status, run_dir.metrics()) + shared_metrics()
        return Response(rendered, media_type=CONTENT_TYPE_LATEST)

    return router


def public(controller: RunController) -> dict[str, Any]:
    """The status, without the addresses of other services; the log has them."""
    shown: dict[str, Any] = without_addresses(controller.settings)(controller.status.as_dict())
    return shown


def control_routes(controller: RunController) -> APIRouter:
    """Routes that control the run."""
    router = APIRouter(prefix="/run", tags=["control"])

    def acknowledge(done: bool, otherwise: str) -> dict[str, Any]:
        if not done:
            raise HttpError(409, "conflict", otherwise)
        return public(controller)

    @router.post("/start")
    async def start() -> dict[str, Any]:
        """Start the run, continue it from its last checkpoint, or resume it after a pause."""
        try:
            return acknowledge(controller.start(), "the run is already under way")
        except RunInUseError as error:
            raise HttpError(409, "conflict", str(error)) from error

    @router.post("/pause")
    async def pause() -> dict[str, Any]:
        """Pause the run before its next step."""
        return acknowledge(controller.pause(), "no run is under way, or it was told to end after this step")

    @router.post("/stop")
    async def stop() -> dict[str, Any]:
        """End the run after its current step, with a checkpoint."""
        return acknowledge(controller.stop(), "no run is under way")

    return router
