"""Policy servers in processes of their own that receive broadcasts; one process imports, the others are its forks."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from research.clients import PolicyAdmin
from tests.support.receiving_server import serve


def state(fill: float, width: int = 8) -> dict[str, Tensor]:
    torch.manual_seed(round(fill))
    shapes = {
        "0.weight": (64, width),
        "1.bias": (width,),
        "1.weight": (width, width),
        "2.bias": (width,),
        "2.weight": (width,),
    }
    return {name: fill + torch.randn(shape) for name, shape in shapes.items()}


@dataclass
class Servers:
    """Real routes, transactions and workers in processes of their own."""

    directory: Path
    stall: float = 30.0  # seconds
    processes: list[BaseProcess] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    def start(self, *workers: int, width: int = 8) -> None:
        """Start servers with so many workers each."""
        base = self.directory / f"base-{width}"
        base.mkdir(exist_ok=True)
        save_file(state(0, width), base / "model.safetensors")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.support.receiving_server"])
        told = []
        for count in workers:
            telling, hearing = multiprocessing.Pipe()
            process = context.Process(target=serve, args=(base, count, width, self.stall, telling), daemon=True)
            process.start()
            self.processes.append(process)
            told.append(hearing)
        self.urls += [f"http://127.0.0.1:{hearing.recv()}" for hearing in told]

    def served(self, *numbers: int) -> list[tuple[str, list[str]]]:
        """Version and digests of the workers' weights, of servers by number."""

        async def ask(admins: list[PolicyAdmin]) -> list[tuple[str, list[str]]]:
            return [((await admins[n].weights()).version, list((await admins[n].digests()).values())) for n in numbers]

        return self.with_admins(ask)

    def with_admins(self, work: Callable[[list[PolicyAdmin]], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            admins = [PolicyAdmin(url, token="t", retries=0) for url in self.urls]
            try:
                async with asyncio.timeout(240):
                    return await work(admins)
            finally:
                await asyncio.gather(*(admin.close() for admin in admins))

        return asyncio.run(run())


@contextmanager
def receiving_servers(directory: Path) -> Iterator[Servers]:
    """Servers that are killed in the end, however they are."""
    servers = Servers(directory)
    try:
        yield servers
    finally:
        for process in servers.processes:
            process.kill()
            process.join()
