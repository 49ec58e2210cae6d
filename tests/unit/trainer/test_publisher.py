"""Published versions on the disk: which stay, and what a killed run left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from safetensors.torch import load_file

from research.clients import PolicyAdmin, PolicyClient
from research.schemas import WeightsRequest, WeightsResponse
from services.trainer.weights.publisher import Publisher
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import DiskSync
from tests.support.fixed_weights import FixedWeights
from tests.support.tiny_model import write_tiny_model


class TakesAll:
    """Stands for the client of a server that takes every version."""

    async def update_weights(self, request: WeightsRequest) -> WeightsResponse:
        return WeightsResponse(version=request.version, seconds={"pause": 0.0})


def test_two_versions_stay_and_what_a_kill_left_unfinished_goes(tmp_path: Path) -> None:
    base, weights = write_tiny_model(tmp_path / "tiny"), tmp_path / "weights"
    # Killed while it wrote version 4, then again while it wrote version 9 in a run that was rolled back since.
    for left in ("version-000004.partial", "version-000009.partial", "version-000001", "version-000007"):
        (weights / left).mkdir(parents=True)
    taker = TakesAll()
    replicas = Replicas([Replica(cast(PolicyClient, taker), cast(PolicyAdmin, taker))], DiskSync(), print)
    publisher = Publisher(base, weights, replicas, "Think first.")
    state = load_file(base / "model.safetensors")
    for version in (3, 4):
        asyncio.run(publisher.publish(FixedWeights(state), version))
    assert sorted(path.name for path in weights.iterdir()) == ["version-000003", "version-000004"]
    assert (weights / "version-000004" / "prompt.txt").read_text() == "Think first.\n"
    assert publisher.version == 4
