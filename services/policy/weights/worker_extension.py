"""What we add to vLLM's worker: digests of the weights that really compute, recovery from a failed update, and weights
received over NCCL.

On a CPU vLLM packs the weights of linear layers into its own kernels and leaves empty tensors behind, so vLLM's own
checksum (`/weight_checker`) hashes nothing for them. Multiplying by the identity reads the packed weights back: in the
weights' own dtype the product is exact, since each sum has one non-zero term.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest

from services.transport.broadcast import receive
from services.transport.nccl import Seat

logger = init_logger("vllm.research.worker")


class ResearchWorker:
    """Mixed into the worker by `--worker-extension-cls`; the server calls its methods by name."""

    model_runner: Any
    vllm_config: Any
    rank: int
    device: torch.device
    weight_transfer_engine: Any
    _weight_update_active: bool
    add_lora: Callable[[LoRARequest], bool]

    def research_weight_digests(self) -> dict[str, str]:
        """SHA-256 of each weight in the form used for computing, by name, prefixed with the worker's rank."""
        model = self.model_runner.get_model()
        with torch.inference_mode():
            return {f"rank{self.rank}:{name}": _digest(weight) for name, weight in _effective_weights(model)}

    def research_try(self, method: str, *arguments: Any) -> str | None:
        """Call a method; returns why it failed, or None (see `worker_rpc.py`)."""
        try:
            getattr(self, method)(*arguments)
        except Exception as error:
            logger.exception("%s failed", method)
            return f"{error}" or repr(error)
        return None

    def research_add_adapter(self, name: str, number: int, path: str) -> None:
        """Load a LoRA adapter; it replaces the one with the same number."""
        self.add_lora(LoRARequest(name, number, path, load_inplace=True))

    def research_receive_weights(
        self, group_id: str, first_rank: int, ranks: int, tensors: list[tuple[str, str, list[int]]]
    ) -> None:
        """Keep in host memory what the trainer broadcasts; nothing is loaded yet.

        Args:
            group_id: the group to join; also the engine's key for the weights.
            first_rank: of this server's workers in it.
            ranks: of the whole group.
            tensors: name, dtype (in safetensors' spelling) and shape of each, in the order of the broadcast.

        Raises what `services.transport.broadcast.receive` raises.
        """
        seat = Seat(group_id, first_rank + self.rank, ranks, self.device)
        self.weight_transfer_engine.received[group_id] = receive(seat, tensors)

    def research_keep_received(self, group_ids: list[str]) -> None:
        """Drop all received weights except these."""
        received = self.weight_transfer_engine.received
        self.weight_transfer_engine.received = {key: received[key] for key in group_ids if key in received}

    def research_abandon_update(self) -> None:
        """End a failed update session, ignoring errors, so that another can begin.

        vLLM's own `finish_weight_update` keeps the session open when it fails, and then refuses every other one.
        """
        if not self._weight_update_active:
            return
        try:
            with set_current_vllm_config(self.vllm_config):
                self.weight_transfer_engine.finish_weight_update()
        except Exception:
            logger.exception("A failed update session could not be ended cleanly")
        finally:
            self.weight_transfer_engine.reset_weight_update_target()
            self._weight_update_active = False


def _effective_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.numel():
            yield name, parameter
    for name, module in model.named_modules():
        if hasattr(module, "cpu_linear"):
            yield f"{name}.packed", _unpacked(module)


def _unpacked(module: Any) -> torch.Tensor:
    """The `[in, out]` matrix that a packed layer multiplies by."""
    size = getattr(module, "input_size_per_partition", None) or module.embedding_dim
    identity = torch.eye(size, dtype=getattr(module, "params_dtype", None) or module.weight.dtype)
    product: torch.Tensor = module.cpu_linear(identity, module.weight, None)
    return product


def _digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()
