"""Weights that fail to load half-way: the real vLLM goes on with the old ones, all of them, and takes the next."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from research.clients import PolicyAdmin
from research.errors import ServiceError
from research.schemas import WeightsRequest
from tests.conftest import Server

ADMIN = "admin-for-tests"
FAULTS = Path(__file__).with_name("faults")
T = TypeVar("T")

# In files tensors come by name: the parts of a fused layer one by one, and other layers in between.
CUTS = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.3.mlp.gate_proj.weight",
    "model.layers.3.mlp.up_proj.weight",
    "model.layers.3.self_attn.k_proj.weight",
    "model.layers.3.self_attn.o_proj.weight",
    "model.layers.3.self_attn.q_proj.weight",
    "model.layers.3.self_attn.v_proj.weight",
    "model.layers.29.self_attn.v_proj.weight",
    "model.norm.weight",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def other(runs: Path, data_dir: Path) -> Path:
    """A checkpoint that differs from the served one in every matrix."""
    target = runs / "other"
    shutil.copytree(data_dir / "models" / "smollm2-135m-instruct", target)
    torch.manual_seed(0)
    tensors = load_file(target / "model.safetensors")
    noisy = {name: t + 0.01 * torch.randn_like(t) if t.ndim > 1 else t for name, t in tensors.items()}
    save_file(noisy, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def policy(launch: Any, runs: Path) -> Server:
    path = os.pathsep.join(filter(None, [str(FAULTS), os.environ.get("PYTHONPATH")]))
    server: Server = launch(
        "policy",
        f"policy.weights_dir={runs}",
        timeout=300,
        environment={"RESEARCH_ADMIN_TOKEN": ADMIN, "OMP_NUM_THREADS": "2", "PYTHONPATH": path},
    )
    return server


def with_admin(policy: Server, use: Callable[[PolicyAdmin], Any]) -> Any:
    async def run() -> Any:
        async with PolicyAdmin(policy.url, token=ADMIN, retries=0) as admin:
            return await use(admin)

    return asyncio.run(run())


def digests(policy: Server) -> dict[str, str]:
    found: dict[str, str] = with_admin(policy, lambda admin: admin.digests())
    return found


def update(policy: Server, path: Path, version: str) -> None:
    with_admin(policy, lambda admin: admin.update_weights(WeightsRequest(path=str(path), version=version)))


def test_wherever_it_breaks_the_old_weights_serve_and_the_next_update_succeeds(
    policy: Server, runs: Path, other: Path, data_dir: Path
) -> None:
    original = runs / "original"
    shutil.copytree(data_dir / "models" / "smollm2-135m-instruct", original)
    before = digests(policy)
    update(policy, other, "1")
    after = digests(policy)
    assert {name for name in before if before[name] != after[name]}
    update(policy, original, "2")
    assert digests(policy) == before
    for number, tensor in enumerate(CUTS):
        broken = runs / f"unreadable-from-{tensor}"
        shutil.copytree(other, broken)
        with pytest.raises(ServiceError, match="served on"):
            update(policy, broken, f"broken-{number}")
        assert digests(policy) == before, f"after a failure at {tensor}"
        shutil.rmtree(broken)
        update(policy, other, f"good-{number}")
        assert digests(policy) == after, f"after a failure at {tensor} and a good update"
        update(policy, original, f"back-{number}")
    with policy.client() as client:
        assert client.get("/readyz").json()["detail"] == f"weight version back-{len(CUTS) - 1}"
