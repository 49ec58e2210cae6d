"""Weights that are broadcast to a real vLLM; gloo stands for NCCL, which needs two GPUs. The rest is as with NCCL."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from research.clients import PolicyAdmin
from research.errors import ServiceError
from research.schemas import WeightsRequest
from services.trainer.weights.nccl_sync import NcclSync
from services.trainer.weights.weight_sync import DiskSync
from services.transport import nccl
from tests.conftest import Server
from tests.services.policy.shared.conftest import ADMIN
from tests.support.gloo_group import GlooGroup, join_gloo, new_gloo_id

MATRIX = "model.layers.7.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def model(data_dir: Path) -> Path:
    return data_dir / "models" / "smollm2-135m-instruct"


def changed(model: Path, target: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    save_file({name: change(name, tensor) for name, tensor in tensors.items()}, target / "model.safetensors")
    return target


@pytest.fixture(scope="module")
def noisy(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the trainer's disk, which the server accepts nothing from."""
    torch.manual_seed(0)
    return changed(
        model,
        tmp_path_factory.mktemp("trainer") / "noisy",
        lambda _, tensor: tensor + 0.01 * torch.randn_like(tensor) if tensor.ndim > 1 else tensor,
    )


@pytest.fixture(autouse=True)
def gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "new_group_id", new_gloo_id)
    monkeypatch.setattr(nccl, "join_group", join_gloo)


def give(policy: Server, checkpoint: Path, version: str, broadcasting: bool = True) -> dict[str, float]:
    sync = NcclSync(torch.device("cpu"), print) if broadcasting else DiskSync()

    async def run() -> dict[str, float]:
        async with asyncio.timeout(120), PolicyAdmin(policy.url, token=ADMIN, retries=0) as admin:
            [answer] = await sync.deliver([admin], WeightsRequest(path=str(checkpoint), version=version))
            if isinstance(answer, ServiceError):
                raise answer
            return answer.seconds

    return asyncio.run(run())


def served(policy: Server) -> tuple[str, dict[str, str]]:
    """Version and digests."""

    async def run() -> tuple[str, dict[str, str]]:
        async with PolicyAdmin(policy.url, token=ADMIN) as admin:
            return (await admin.weights()).version, await admin.digests()

    return asyncio.run(run())


def test_what_is_broadcast_is_served_as_if_it_came_from_a_file(
    policy: Server, runs: Path, model: Path, noisy: Path
) -> None:
    _, before = served(policy)
    seconds = give(policy, noisy, "1")
    assert {"receive", "pause", "update", "finish", "resume"} <= seconds.keys()
    version, broadcast_digests = served(policy)
    assert version == "1"
    shutil.copytree(noisy, runs / "sent-noisy")
    shutil.copytree(model, runs / "sent-original")
    give(policy, runs / "sent-original", "2", broadcasting=False)
    assert served(policy) == ("2", before)
    give(policy, runs / "sent-noisy", "3", broadcasting=False)
    assert served(policy) == ("3", broadcast_digests)
    assert before != broadcast_digests


def test_what_cannot_be_served_leaves_what_was_broadcast_before(
    policy: Server, model: Path, noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(policy, noisy, "good")
    before = served(policy)
    assert before[0] == "good"

    not_a_number = changed(noisy, tmp_path / "nan", lambda name, t: t * float("nan") if name == MATRIX else t)
    with pytest.raises(ServiceError, match=rf"{MATRIX}.*not finite.*version good is still served"):
        give(policy, not_a_number, "bad")
    assert served(policy) == before

    wrong_shape = changed(noisy, tmp_path / "shape", lambda name, t: t[:-1].contiguous() if name == MATRIX else t)
    with pytest.raises(ServiceError, match=f"422.*{MATRIX}"):
        give(policy, wrong_shape, "bad")
    assert served(policy) == before

    class Dying(GlooGroup):
        """The trainer is killed after some tensors."""

        sent = 0

        def broadcast(self, tensor: torch.Tensor) -> None:
            self.sent += 1
            if self.sent == 100:
                raise RuntimeError("killed")
            super().broadcast(tensor)

    with monkeypatch.context() as dying:
        dying.setattr(nccl, "join_group", Dying)
        with pytest.raises(ServiceError, match=r"could not be received.*version good is still served"):
            give(policy, noisy, "bad")
    assert served(policy) == before
    give(policy, model, "next")
    assert served(policy)[0] == "next"
    with policy.client() as client:
        assert client.get("/readyz").status_code == 200
