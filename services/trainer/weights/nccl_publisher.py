"""Sends weights to policy servers that do not share the trainer's disk: from GPU to GPU, by NCCL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from research.clients import PolicyAdmin
from research.errors import ServiceError
from research.schemas import BroadcastRequest, TensorOnWire, WeightsRequest, WeightsResponse
from services.transport.nccl import join_group, new_group_id
from services.transport.safetensors_files import slices_of, tensors_of


class BroadcastingAdmin(PolicyAdmin):
    """A `PolicyAdmin` that sends the weights themselves instead of their path.

    Args:
        url: of the policy server.
        token: its admin token.
        device: the trainer's GPU, which no worker of the server may use: NCCL needs one GPU per rank.
        sending: shared by all senders on this GPU: NCCL's groups must not compete for it.
    """

    def __init__(self, url: str, *, token: str, device: torch.device, sending: asyncio.Lock) -> None:
        # No retries: no worker joins a group twice.
        super().__init__(url, token=token, retries=0)
        self._device = device
        self._sending = sending

    async def update_weights(self, request: WeightsRequest) -> WeightsResponse:
        """Send the weights at `request.path`, which is on the trainer's disk.

        Raises:
            ServiceError: the server refuses them, or is lost during the transfer. The sending thread may then wait
                forever, as NCCL does, and ends with the process.
        """
        async with self._sending:
            return await self._broadcast(Path(request.path), request.version)

    async def _broadcast(self, checkpoint: Path, version: str) -> WeightsResponse:
        ranks = 1 + (await self.weights()).workers
        group_id = await asyncio.to_thread(new_group_id)
        body = BroadcastRequest(group_id=group_id, tensors=_on_wire(checkpoint), version=version)
        asked = asyncio.create_task(self.request("POST", "/admin/weights/broadcast", json=body.model_dump()))
        sent = _in_thread(lambda: self._send(checkpoint, group_id, ranks))
        await asyncio.wait({asked, sent}, return_when=asyncio.FIRST_COMPLETED)
        if sent.done() and (fault := sent.exception()):
            asked.cancel()
            raise ServiceError(f"cannot send weights to {self._name} at {self.url} ({fault!r})") from fault
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())  # reported already, if it matters
        return WeightsResponse.model_validate(await asked)

    def _send(self, checkpoint: Path, group_id: str, ranks: int) -> None:
        group = join_group(group_id, 0, ranks, self._device)
        try:
            for _, tensor in tensors_of(checkpoint):
                group.broadcast(tensor.to(self._device), src=0)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        finally:
            group.destroy()


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Like `asyncio.to_thread`, but the process does not wait for the thread when it ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(fault: Exception | None) -> None:
        if not done.done():
            done.set_exception(fault) if fault else done.set_result(None)

    def run() -> None:
        fault = None
        try:
            work()
        except Exception as error:
            fault = error
        with suppress(RuntimeError):  # the loop may be closed by then
            loop.call_soon_threadsafe(tell, fault)

    threading.Thread(target=run, name="broadcast", daemon=True).start()
    return done


def _on_wire(checkpoint: Path) -> dict[str, TensorOnWire]:
    """Names, dtypes and shapes, in the order of `tensors_of`."""
    return {name: TensorOnWire(dtype=part.get_dtype(), shape=part.get_shape()) for name, part in slices_of(checkpoint)}
