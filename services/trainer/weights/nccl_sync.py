"""Sends weights to policy servers that do not share the trainer's disk: from GPU to GPU, by NCCL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from research.clients import PolicyAdmin
from research.errors import ServiceError
from research.schemas import TensorOnWire, WeightsRequest
from services.trainer.parallel.shards import write_state
from services.trainer.weights.broadcaster import Broadcaster, OnWire
from services.trainer.weights.disk_copy import DiskCopy
from services.trainer.weights.weight_sync import Answer, Learned, WriteTensors
from services.transport.nccl import DTYPES
from services.transport.safetensors_files import slices_of, tensors_of

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class NcclSync:
    """A `WeightSync` that sends from host memory, and writes what is served in the background.

    A version is gathered into host memory first: neither a lost server nor the disk holds up the learner's other
    processes, and a second try needs no second gathering. It leaves the memory once it is on the disk.
    """

    def __init__(self, device: torch.device, log: Callable[[str], None]) -> None:
        """`device`: the trainer's GPU, which no worker of a server may use. `log` is told of second tries."""
        self._broadcaster = Broadcaster(device, log)
        self._copy = DiskCopy()
        self._staged: tuple[str, dict[str, Tensor]] | None = None
        self._write: Callable[[], None] | None = None

    async def stage(self, learned: Learned, base: Path, write: Callable[[WriteTensors], None], version: str) -> None:
        await self._copy.written()
        tensors = await asyncio.to_thread(learned.gather_weights, base)
        self._staged = version, tensors
        self._write = partial(write, partial(write_state, tensors))

    async def deliver(self, admins: Sequence[PolicyAdmin], request: WeightsRequest) -> list[Answer]:
        staged = self._staged
        if staged is not None and staged[0] == request.version:
            return await self._broadcaster.deliver(admins, _in_memory(staged[1]), request.version)
        await self._copy.written()
        return await self._broadcaster.deliver(admins, _on_disk(Path(request.path)), request.version)

    async def keep(self, prune: Callable[[], None]) -> None:
        write = self._write
        assert write is not None

        def work() -> None:
            write()
            self._staged = self._write = None
            prune()

        self._copy.begin(work)

    async def settled(self) -> None:
        await self._copy.written()

    async def close(self) -> None:
        await self._copy.close()


def _in_memory(tensors: dict[str, Tensor]) -> OnWire:
    specs = {
        name: TensorOnWire(dtype=_NAMES[tensor.dtype], shape=list(tensor.shape)) for name, tensor in tensors.items()
    }
    return OnWire(specs, tensors.values)


def _on_disk(checkpoint: Path) -> OnWire:
    """Raises ServiceError if it cannot be read."""
    try:
        specs = {
            name: TensorOnWire(dtype=part.get_dtype(), shape=part.get_shape()) for name, part in slices_of(checkpoint)
        }
    except (OSError, SafetensorError) as error:
        raise ServiceError(f"cannot read {checkpoint}: {error}") from error
    return OnWire(specs, lambda: (tensor for _, tensor in tensors_of(checkpoint)))
