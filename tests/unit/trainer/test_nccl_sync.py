"""A version that is broadcast: what is in memory, what is on the disk, and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from research.clients import PolicyAdmin, PolicyClient
from research.schemas import WeightsRequest, WeightsResponse
from services.trainer.weights import disk_copy
from services.trainer.weights.nccl_sync import NcclSync
from services.trainer.weights.publisher import Publisher, write_checkpoint
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import WriteTensors
from services.transport import nccl
from tests.support.fixed_weights import FixedWeights
from tests.support.gloo_group import join_gloo, new_gloo_id
from tests.support.receiving_servers import Servers, receiving_servers, state

pytestmark = pytest.mark.slow


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    monkeypatch.setattr(nccl, "join_group", join_gloo)
    monkeypatch.setattr(nccl, "new_group_id", new_gloo_id)
    with receiving_servers(tmp_path) as servers:
        yield servers


class Disk:
    """Where a version is written once the gate is open."""

    def __init__(self, servers: Servers) -> None:
        self.base = servers.directory / "base-8"
        self.weights = servers.directory / "weights"
        self.request = WeightsRequest(path=str(self.weights / "version-000001"), version="1")
        self.gate = threading.Event()

    def is_written(self) -> bool:
        return Path(self.request.path).exists()

    def write(self, write_tensors: WriteTensors) -> None:
        def when_open(base: Path, directory: Path) -> None:
            self.gate.wait()
            write_tensors(base, directory)

        write_checkpoint(when_open, self.base, Path(self.request.path), "Think first.")


def test_it_is_served_from_memory_until_it_is_on_the_disk_and_nothing_changes_it(servers: Servers) -> None:
    servers.start(1, 1, 1)
    disk, sync, weights = Disk(servers), NcclSync(torch.device("cpu"), print), state(1)

    async def scenario(admins: list[PolicyAdmin]) -> list[Any]:
        await sync.stage(FixedWeights(weights), disk.base, disk.write, "1")
        answers = await sync.deliver(admins[:1], disk.request)
        await sync.keep(lambda: None)
        weights["1.weight"].zero_()  # the learner goes on
        settling = asyncio.create_task(sync.settled())
        answers += await sync.deliver(admins[1:2], disk.request)  # it comes back
        assert not settling.done()
        assert not disk.is_written()
        disk.gate.set()
        await settling
        answers += await sync.deliver(admins[2:], disk.request)
        return answers

    answers = servers.with_admins(scenario)
    assert all(isinstance(answer, WeightsResponse) for answer in answers), answers
    first, second, third = servers.served(0, 1, 2)
    assert first == second == third
    assert load_file(Path(disk.request.path) / "model.safetensors")["1.weight"].equal(state(1)["1.weight"])


def test_a_disk_that_fails_is_told_at_the_next_version_and_until_then_the_memory_serves(servers: Servers) -> None:
    servers.start(1)
    disk, sync = Disk(servers), NcclSync(torch.device("cpu"), print)

    def full(write_tensors: WriteTensors) -> None:
        raise OSError("No space left on device")

    async def scenario(admins: list[PolicyAdmin]) -> None:
        await sync.stage(FixedWeights(state(1)), disk.base, full, "1")
        await sync.keep(lambda: None)
        with pytest.raises(OSError, match="No space left"):
            await sync.settled()
        [answer] = await sync.deliver(admins, disk.request)
        assert isinstance(answer, WeightsResponse)
        with pytest.raises(OSError, match="No space left"):
            await sync.stage(FixedWeights(state(2)), disk.base, disk.write, "2")

    servers.with_admins(scenario)


def test_who_stops_while_it_writes_leaves_nothing_that_is_believed(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.start()
    monkeypatch.setattr(disk_copy, "_LAST_SECONDS", 0.1)
    disk, sync = Disk(servers), NcclSync(torch.device("cpu"), print)

    async def scenario() -> None:
        await sync.stage(FixedWeights(state(1)), disk.base, disk.write, "1")
        await sync.keep(lambda: None)
        async with asyncio.timeout(60):
            while not any(disk.weights.glob("*.partial")):  # noqa: ASYNC110 (a thread makes it)
                await asyncio.sleep(0.01)
        await sync.close()

    asyncio.run(scenario())
    assert [path.name for path in disk.weights.iterdir()] == ["version-000001.partial"]
    disk.gate.set()


def test_versions_are_published_kept_and_pruned(servers: Servers) -> None:
    servers.start(1, 1)
    disk, said = Disk(servers), list[str]()
    sync = NcclSync(torch.device("cpu"), said.append)

    async def scenario(admins: list[PolicyAdmin]) -> None:
        pairs = [Replica(PolicyClient(admin.url), admin) for admin in admins]
        publisher = Publisher(disk.base, disk.weights, Replicas(pairs, sync, said.append), "Think first.")
        for version in (1, 2, 3):
            await publisher.publish(FixedWeights(state(version)), version)
        await publisher.settled()
        assert await publisher.reconcile() is None
        await asyncio.gather(*(pair.client.close() for pair in pairs))

    servers.with_admins(scenario)
    assert sorted(path.name for path in disk.weights.iterdir()) == ["version-000002", "version-000003"]
    assert load_file(disk.weights / "version-000002" / "model.safetensors")["1.bias"].equal(state(2)["1.bias"])
    assert [version for version, _ in servers.served(0, 1)] == ["3", "3"]
    assert said == []
