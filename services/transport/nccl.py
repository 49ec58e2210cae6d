"""A group of the trainer (rank 0) and all workers of all policy servers, for one transfer of weights over NCCL.

The group's id travels in the authenticated request, so no extra port is opened and nothing is unpickled.
Both sides use vLLM's communicator, which needs CUDA and one GPU per rank.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# As safetensors and torch name them.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank's place in a group.

    Attributes:
        group_id: from `new_group_id`.
        rank: 0 sends; workers come after it.
        ranks: of the group.
        device: a GPU that no other rank of the group uses.
    """

    group_id: str
    rank: int
    ranks: int
    device: torch.device


class Group(Protocol):
    """What a rank does in a group."""

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send `tensor` from rank 0, or receive into it."""
        ...

    def sums(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's `tensor`; it is known once all ranks have given theirs."""
        ...

    def leave(self) -> None:
        """Leave when all is done; returns once all ranks leave, so that nobody misses what is still on its way."""
        ...

    def abort(self) -> None:
        """Leave at once, from any thread: whatever this rank waits for in the group ends, with an error or garbage."""
        ...


class NcclGroup:
    """A `Group` over vLLM's communicator."""

    def __init__(self, seat: Seat) -> None:
        """Join; returns once all ranks have, and waits for ever for one that does not come."""
        from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

        self._device = seat.device
        self._communicator: Any = uid_init_process_group(
            base64.b64decode(seat.group_id), seat.rank, seat.ranks, seat.device
        )

    def broadcast(self, tensor: torch.Tensor) -> None:
        self._communicator.broadcast(tensor, src=0)
        torch.accelerator.synchronize(self._device)  # what is under way is what has moved: a stall is seen

    def sums(self, tensor: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._communicator.all_reduce(tensor)
        return found

    def leave(self) -> None:
        # `destroy` aborts, which drops what is still on its way to a slower rank.
        with torch.accelerator.device_index(self._device.index):
            self._communicator.nccl.ncclCommDestroy(self._communicator.comm)

    def abort(self) -> None:
        self._communicator.destroy()


def new_group_id() -> str:
    """An id for a new group. Raises OSError if there is no NCCL library."""
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

    return base64.b64encode(bytes(NCCLLibrary().ncclGetUniqueId().internal)).decode()


def join_group(seat: Seat) -> Group:
    """Join; returns once all ranks have."""
    return NcclGroup(seat)
