"""Weights that are broadcast to a real vLLM; sockets stand for NCCL, which needs two GPUs. The rest is as with NCCL."""

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
from services.trainer.weights import nccl_publisher as broadcast
from services.trainer.weights.nccl_publisher import BroadcastingAdmin
from tests.conftest import Server
from tests.services.policy.shared.conftest import ADMIN
from tests.support.socket_group import SocketGroup, join_sockets, new_socket_group

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
def sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "new_group_id", new_socket_group)
    monkeypatch.setattr(broadcast, "join_group", join_sockets)


def give(policy: Server, checkpoint: Path, version: str, broadcasting: bool = True) -> dict[str, float]:
    async def run() -> dict[str, float]:
        admin = (
            BroadcastingAdmin(policy.url, token=ADMIN, device=torch.device("cpu"), sending=asyncio.Lock())
            if broadcasting
            else PolicyAdmin(policy.url, token=ADMIN, retries=0)
        )
        async with asyncio.timeout(120), admin:
            answer = await admin.update_weights(WeightsRequest(path=str(checkpoint), version=version))
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

    class Dying(SocketGroup):
        """The trainer is killed after some tensors."""

        sent = 0

        def broadcast(self, tensor: torch.Tensor, src: int) -> None:
            self.sent += 1
            if self.sent == 100:
                raise RuntimeError("killed")
            super().broadcast(tensor, src)

    def join_and_die(group_id: str, rank: int, ranks: int, device: torch.device) -> Dying:
        group = join_sockets(group_id, rank, ranks, device)
        return Dying(group._connection, rank)

    with monkeypatch.context() as dying:
        dying.setattr(broadcast, "join_group", join_and_die)
        with pytest.raises(ServiceError, match=r"killed|sender is gone"):
            give(policy, noisy, "bad")
    assert served(policy) == before
    give(policy, model, "next")
    assert served(policy)[0] == "next"
    with policy.client() as client:
        assert client.get("/readyz").status_code == 200
