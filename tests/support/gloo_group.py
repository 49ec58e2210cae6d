"""A real group over gloo in the place of NCCL's, which needs a GPU per rank; what is sent over it is the same."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from services.transport.nccl import Seat

# Longer than the tests wait for a lost rank: a hanging group is ended by our own limit.
_PATIENCE = timedelta(seconds=60)

_stores: list[dist.TCPStore] = []


def new_gloo_id() -> str:
    """As `services.transport.nccl.new_group_id`: the port at which this process tells ranks of each other."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _stores.append(store)
    return str(store.port)


def join_gloo(seat: Seat) -> GlooGroup:
    """As `services.transport.nccl.join_group`."""
    return GlooGroup(seat)


class GlooGroup:
    """As `services.transport.nccl.NcclGroup`."""

    def __init__(self, seat: Seat) -> None:
        assert seat.device.type == "cpu"
        self._store = dist.TCPStore("127.0.0.1", int(seat.group_id), is_master=False, timeout=_PATIENCE)
        self._joined: dist.ProcessGroupGloo | None = dist.ProcessGroupGloo(
            self._store, seat.rank, seat.ranks, _PATIENCE
        )

    @property
    def _group(self) -> dist.ProcessGroupGloo:
        if self._joined is None:
            raise ConnectionAbortedError("this rank has left the group")
        return self._joined

    def broadcast(self, tensor: torch.Tensor) -> None:
        self._group.broadcast([tensor], dist.BroadcastOptions()).wait()

    def sums(self, tensor: torch.Tensor) -> torch.Tensor:
        self._group.allreduce([tensor], dist.AllreduceOptions()).wait()
        return tensor

    def leave(self) -> None:
        self._group.barrier(dist.BarrierOptions()).wait()

    def abort(self) -> None:
        self._joined = None  # closes its connections; gloo's own `abort` does not
