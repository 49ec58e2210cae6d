"""Two real policy servers that are updated as one; one of them dies and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from research.clients import PolicyAdmin, PolicyClient
from research.episode.agent import Sampling
from research.episode.tokenizer import HuggingFaceTokenizer
from research.errors import ServiceError
from research.prompts import load_prompt
from services.trainer.parallel.shards import write_state
from services.trainer.weights.publisher import Publisher
from services.trainer.weights.replicas import Replica, Replicas
from tests.conftest import Server

ADMIN = "admin-for-tests"


@pytest.fixture(scope="module")
def model(data_dir: Path) -> Path:
    return data_dir / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def start(launch: Any, weights: Path) -> Callable[..., Server]:
    def start(**options: Any) -> Server:
        server: Server = launch(
            "policy",
            f"policy.weights_dir={weights}",
            "policy.kv_cache_gib=1",
            timeout=300,
            environment={"RESEARCH_ADMIN_TOKEN": ADMIN},
            **options,
        )
        return server

    return start


def noisy(model: Path, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    tensors = load_file(model / "model.safetensors")
    return {name: t + 0.01 * torch.randn_like(t) if t.ndim > 1 else t for name, t in tensors.items()}


def digests_of(servers: list[Server]) -> list[dict[str, str]]:
    async def run() -> list[dict[str, str]]:
        found = []
        for server in servers:
            async with PolicyAdmin(server.url, token=ADMIN) as admin:
                found.append(await admin.digests())
        return found

    return asyncio.run(run())


def test_all_serve_the_published_version_or_are_out(start: Callable[..., Server], model: Path, weights: Path) -> None:
    servers = [start(), start()]
    said: list[str] = []
    tokenizer = HuggingFaceTokenizer(AutoTokenizer.from_pretrained(model))
    prompt = load_prompt("research-small")
    prompts = [tokenizer.prompt_ids(prompt, f"Who wrote book {number}?") for number in range(8)]

    async def versions(replicas: Replicas) -> set[str]:
        drawn = await asyncio.gather(*(replicas.generate(ids, 8, Sampling(1.0)) for ids in prompts))
        return {version for generation in drawn for version in generation.versions}

    async def with_publisher(scenario: Callable[[Publisher, Replicas], Awaitable[None]]) -> None:
        pairs = [Replica(PolicyClient(s.url, retries=0), PolicyAdmin(s.url, token=ADMIN, retries=0)) for s in servers]
        replicas = Replicas(pairs, said.append)
        try:
            await scenario(Publisher(model, weights, replicas, prompt.text), replicas)
        finally:
            await replicas.close()

    async def scenario(publisher: Publisher, replicas: Replicas) -> None:
        await publisher.publish(partial(write_state, noisy(model, 1)), 1)
        assert await versions(replicas) == {"1"}
        first, second = await asyncio.to_thread(digests_of, servers)
        assert first == second

        killed = servers[1]
        os.killpg(killed.process.pid, signal.SIGKILL)
        killed.process.wait()
        await publisher.publish(partial(write_state, noisy(model, 2)), 2)
        assert f"{killed.url} is taken out of service" in said[-1]
        assert await versions(replicas) == {"2"}

        # It comes back with the model that it was started with, and is given the published version before it is asked.
        servers[1] = await asyncio.to_thread(start, port=urlsplit(killed.url).port)
        for _ in range(60):
            assert await publisher.reconcile() is None
            if "is in service again; 2 of 2 serve" in said[-1]:
                break
        assert "is in service again; 2 of 2 serve" in said[-1]
        assert await versions(replicas) == {"2"}
        third, fourth = await asyncio.to_thread(digests_of, servers)
        assert third == fourth
        assert third != first

        # A version that no server can load leaves all of them with the former one.
        broken = noisy(model, 3)
        broken["model.norm.weight"] = broken["model.norm.weight"] * float("nan")
        with pytest.raises(ServiceError, match="not finite"):
            await publisher.publish(partial(write_state, broken), 3)
        assert await versions(replicas) == {"2"}
        assert await asyncio.to_thread(digests_of, servers) == [third, third]

    asyncio.run(with_publisher(scenario))
