"""A vLLM weight-transfer engine that loads whole checkpoints: from disk, on any device, or as received over NCCL.

It receives a path (a file on a shared disk or in /dev/shm), or the id of the group from which the worker has received
weights (`worker_extension.py`). It feeds the tensors through the model's own `load_weights`, within vLLM's layerwise
reload. vLLM's own NCCL engine loads while it receives; this one receives everything first, so that nothing is half
loaded if the trainer dies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from services.machine.heap import return_freed_memory
from services.transport.safetensors_files import tensors_of

ENGINE_NAME = "file"


@dataclass
class FileInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Empty: nothing has to be agreed on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The path of the checkpoint, or the group id of received weights."""

    path: str | None = None
    received: str | None = None


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):  # type: ignore[misc]
    """Loads a whole checkpoint in one update."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.received: dict[str, dict[str, torch.Tensor]] = {}

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        try:
            self.model.load_weights(self._tensors(update_info))
        except BaseException:
            # Otherwise the next load would complete a half-filled layer with the first tensors of another checkpoint:
            # vLLM counts elements, not names.
            finalize_layerwise_reload(self.model, self.model_config)
            raise

    def _tensors(self, update_info: FileUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
        if update_info.received is None:
            return tensors_of(Path(str(update_info.path)), self.device)
        received = self.received[update_info.received]
        return ((name, tensor.to(self.device)) for name, tensor in received.items())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        _pack_tied_heads(self.model)
        return_freed_memory()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class then synchronizes an accelerator, which a CPU does not have.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def shutdown(self) -> None:
        """Nothing is held open."""


def _pack_tied_heads(model: torch.nn.Module) -> None:
    """Repack output heads that share the embedding's weight.

    On a CPU such a head computes from a packed copy, which vLLM's reload does not update.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)
