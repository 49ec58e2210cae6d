"""The trainer's HTTP side: health, status, metrics and, with an admin token, control."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.responses import FileResponse, HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST

from research.settings import Settings
from services.trainer.api.prometheus import render_metrics
from services.trainer.controller import RunController
from services.trainer.entry import Entry
from services.trainer.run_dir.run_dir import RunDirectory
from services.web.auth import ADMIN_TOKEN_VARIABLE, environment_secret, require_bearer
from services.web.problems import HttpError, install_http_error_handler

_PAGE = Path(__file__).with_name("status_page.html")


def create_app(settings: Settings, *, returning: bool = False) -> FastAPI:
    """The app around one run, which starts on request.

    `returning`: orders are kept on the disk, and what they say is done again at the start.
    """
    controller = RunController(settings, keeps_orders=returning)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if returning:
            controller.come_back()
        yield
        await controller.cancel()

    app = FastAPI(title="Trainer", summary="Trains a search agent with GRPO.", lifespan=lifespan)
    app.state.controller = controller
    install_http_error_handler(app)
    app.include_router(_observation(controller, RunDirectory(settings.run_dir)))
    token = environment_secret(ADMIN_TOKEN_VARIABLE)
    if token is not None:
        guard = Depends(require_bearer(token, ADMIN_TOKEN_VARIABLE))
        app.include_router(_control(controller), dependencies=[guard])
    return app


def _observation(controller: RunController, record: RunDirectory) -> APIRouter:
    router = APIRouter()

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return _PAGE.read_text(encoding="utf-8")

    @router.get("/livez")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @router.get("/readyz")
    async def ready() -> dict[str, str]:
        """The trainer takes orders."""
        return {"status": "ready", "detail": str(controller.status.phase)}

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """What the run is doing, and its last lines of log."""
        return controller.status.as_dict()

    @router.get("/steps", response_model=None)
    def steps() -> list[Entry]:
        """The metrics of every finished step."""
        return record.metrics()

    @router.get("/evaluations")
    def evaluations() -> dict[str, Any]:
        """Held-out figures of every evaluation so far."""
        return record.evaluations()

    @router.get("/training.png", response_class=FileResponse, include_in_schema=False)
    def plot() -> FileResponse:
        path: Path = record.directory / "training.png"
        if not path.is_file():
            raise HttpError(404, "not_found", "the plot is drawn when the run has finished")
        return FileResponse(path, media_type="image/png")

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(render_metrics(controller.status, record.metrics()), media_type=CONTENT_TYPE_LATEST)

    return router


def _control(controller: RunController) -> APIRouter:
    router = APIRouter(prefix="/run", tags=["control"])

    def acknowledge(done: bool, otherwise: str) -> dict[str, Any]:
        if not done:
            raise HttpError(409, "conflict", otherwise)
        return controller.status.as_dict()

    @router.post("/start")
    async def start() -> dict[str, Any]:
        """Start the run, resume it from its last checkpoint, or let a paused one go on."""
        return acknowledge(controller.start(), "the run is already going on")

    @router.post("/pause")
    async def pause() -> dict[str, Any]:
        """Hold the run before its next step."""
        return acknowledge(controller.pause(), "no run is going on")

    @router.post("/stop")
    async def stop() -> dict[str, Any]:
        """End the run after its present step, with a checkpoint."""
        return acknowledge(controller.stop(), "no run is going on")

    return router
