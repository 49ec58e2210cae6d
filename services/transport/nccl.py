"""A group of the trainer (rank 0) and the workers of one policy server, for one transfer of weights over NCCL.

The group's id travels in the authenticated request, so no extra port is opened and nothing is unpickled.
Both sides use vLLM's communicator, which needs CUDA and one GPU per rank.
"""

from __future__ import annotations

import base64
from typing import Any, Protocol

import torch

# As safetensors and torch name them.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Group(Protocol):
    """The methods of vLLM's `PyNcclCommunicator` that both sides use."""

    def broadcast(self, tensor: torch.Tensor, src: int) -> Any:
        """Send `tensor` from rank `src`, or receive into it."""
        ...

    def destroy(self) -> None:
        """Leave the group."""
        ...


def new_group_id() -> str:
    """An id for a new group. Raises OSError if there is no NCCL library."""
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

    return base64.b64encode(bytes(NCCLLibrary().ncclGetUniqueId().internal)).decode()


def join_group(group_id: str, rank: int, ranks: int, device: torch.device) -> Group:
    """Join; returns once all ranks have.

    Args:
        group_id: from `new_group_id`.
        rank: 0 sends; workers come after it.
        ranks: of the group.
        device: a GPU that no other rank of the group uses.
    """
    from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

    group: Group = uid_init_process_group(base64.b64decode(group_id), rank, ranks, device)
    return group
