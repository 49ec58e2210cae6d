"""A policy server without vLLM's engine: the real routes, transaction and worker class around a small torch module."""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from safetensors.torch import load_file

from research.config import load_settings
from services.policy.api.admin import admin_routes
from services.policy.service import PolicyService
from services.policy.weights.updates import WeightUpdates
from services.policy.weights.worker_extension import ResearchWorker
from services.transport import broadcast, nccl
from services.web.errors import install_error_handlers
from tests.support.gloo_group import join_gloo


def small_model(width: int = 8) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Embedding(64, width), torch.nn.Linear(width, width), torch.nn.LayerNorm(width))


class Worker(ResearchWorker):
    """What vLLM's worker does in an update, on a module of its own."""

    def __init__(self, rank: int, model: torch.nn.Module) -> None:
        self.rank, self.device = rank, torch.device("cpu")
        self.model_runner = SimpleNamespace(get_model=lambda: model)
        self.weight_transfer_engine = SimpleNamespace(received={})
        self._weight_update_active = False

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        pass

    def start_weight_update(self) -> None:
        self._weight_update_active = True

    def update_weights(self, info: dict[str, str]) -> None:
        received = self.weight_transfer_engine.received
        tensors = received[info["received"]] if "received" in info else load_file(info["path"])
        self.model_runner.get_model().load_state_dict(tensors)

    def finish_weight_update(self) -> None:
        self._weight_update_active = False


class Engine:
    """What the routes call of vLLM's engine client."""

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers
        self._paused = False

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        return list(await asyncio.gather(*(asyncio.to_thread(getattr(w, method), *args) for w in self._workers)))

    async def is_paused(self) -> bool:
        return self._paused

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self._paused = True

    async def resume_generation(self) -> None:
        self._paused = False

    async def reset_prefix_cache(self, reset_running_requests: bool) -> None:
        pass

    async def update_weight_version(self, version: str) -> None:
        pass

    async def check_health(self) -> None:
        pass


def serve(base: Path, workers: int, width: int, stall: float, telling: Connection) -> None:
    """Serve the checkpoint at `base` with so many workers until killed; tells its port."""
    torch.set_num_threads(1)
    nccl.join_group = join_gloo
    broadcast.STALL_SECONDS = stall
    asyncio.run(_serve(base, workers, width, telling))


async def _serve(base: Path, workers: int, width: int, telling: Connection) -> None:
    models = [small_model(width) for _ in range(workers)]
    for model in models:
        model.load_state_dict(load_file(base / "model.safetensors"))
    service = PolicyService(load_settings())
    service._engine = engine = Engine([Worker(rank, model) for rank, model in enumerate(models)])
    service.workers = workers
    service.updates = WeightUpdates(engine, base / "model.safetensors", base)
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(admin_routes(service))
    app.get("/readyz")(service.health)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn tells nobody)
        await asyncio.sleep(0.01)
    telling.send(server.servers[0].sockets[0].getsockname()[1])
    await running
