"""A real group over gloo in the place of NCCL's, which needs a GPU per rank; what is sent over it is the same."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from services.transport.nccl import Seat

# Longer than the tests wait for a lost rank: a hanging group is ended by our own limit.
_PATIENCE = timedelta(seconds=60)

_stores: list[TCPStore] = []


def new_gloo_id() -> str:
    """As `services.transport.nccl.new_group_id`: the port at which this process tells ranks of each other."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _stores.append(store)
    return str(store.port)


def join_gloo(seat: Seat) -> GlooGroup:
    """As `services.transport.nccl.join_group`."""
    return GlooGroup(seat)


class GlooGroup:
    """As `services.transport.nccl.NcclGroup`."""

    def __init__(self, seat: Seat) -> None:
        assert seat.device.type == "cpu"
        self._store = TCPStore("127.0.0.1", int(seat.group_id), is_master=False, timeout=_PATIENCE)
        self._group: Any = dist.ProcessGroupGloo(self._store, seat.rank, seat.ranks, _PATIENCE)
        self._waits = self._aborted = False

    def broadcast(self, tensor: torch.Tensor) -> None:
        self._do(lambda group: group.broadcast([tensor], dist.BroadcastOptions()))

    def sums(self, tensor: torch.Tensor) -> torch.Tensor:
        self._do(lambda group: group.allreduce([tensor], dist.AllreduceOptions()))
        return tensor

    def leave(self) -> None:
        self._do(lambda group: group.barrier(dist.BarrierOptions()))

    def abort(self) -> None:
        # Without it, its connections close; gloo's own `abort` leaves them open. But as long as it waits for another
        # rank, it cannot be deleted: then the thread that waits does so.
        self._aborted = True
        if not self._waits:
            self._group = None

    def _do(self, work: Callable[[Any], Any]) -> None:
        if self._aborted:
            raise ConnectionAbortedError("this rank has left the group")
        self._waits = True
        try:
            work(self._group).wait()
        finally:
            self._waits = False
            if self._aborted:
                self._group = None
