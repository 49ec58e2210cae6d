"""Published versions on the disk: which stay, and what a killed run left behind."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from research.clients import PolicyAdmin, PolicyClient
from research.errors import AssetError
from research.schemas import WeightsRequest, WeightsResponse
from services.trainer.parallel.shards import write_state
from services.trainer.weights.publisher import Publisher, write_checkpoint
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import DiskSync
from services.transport import safetensors_files
from tests.support.fixed_weights import FixedWeights
from tests.support.tiny_model import write_tiny_model


class TakesAll:
    """Stands for the client of a server that takes every version."""

    url = "http://takes-all"

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


def test_a_tensor_that_the_model_calls_otherwise_is_named(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "tiny")
    state = load_file(base / "model.safetensors")
    state["model.renamed.weight"] = state.pop("model.norm.weight")
    with pytest.raises(AssetError, match=r"has a tensor model\.norm\.weight that the model calls otherwise"):
        write_checkpoint(partial(write_state, state), base, tmp_path / "version", "Think first.")
    assert not (tmp_path / "version").exists()


def test_of_the_base_only_names_and_dtypes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_tiny_model(tmp_path / "tiny")
    state = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}

    class Unread:
        """The base as safetensors opens it, without a way to read a tensor."""

        def __init__(self, *given: Any, **named: Any) -> None:
            self._opened = safe_open(*given, **named)

        def __enter__(self) -> Unread:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def keys(self) -> list[str]:
            return list(self._opened.keys())

        def get_slice(self, name: str) -> object:
            whole = self._opened.get_slice(name)
            return SimpleNamespace(get_dtype=whole.get_dtype, get_shape=whole.get_shape)

    monkeypatch.setattr(safetensors_files, "safe_open", Unread)
    write_checkpoint(partial(write_state, state), base, tmp_path / "version", "Think first.")
    written, original = (load_file(each / "model.safetensors") for each in (tmp_path / "version", base))
    assert {name: tensor.dtype for name, tensor in written.items()} == {n: t.dtype for n, t in original.items()}
