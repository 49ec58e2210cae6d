"""What we add to vLLM's worker: digests of the weights that really compute.

On a CPU vLLM packs the weights of linear layers into its own kernels and leaves empty tensors behind, so vLLM's own
checksum (`/weight_checker`) hashes nothing for them. Multiplying by the identity reads the packed weights back: in the
weights' own dtype the product is exact, since each sum has one non-zero term.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch


class WeightDigests:
    """Mixed into the worker by `--worker-extension-cls`; the server calls it by name."""

    model_runner: Any
    rank: int

    def research_weight_digests(self) -> dict[str, str]:
        """SHA-256 of each weight as it computes, by name, with the worker's rank in front."""
        model = self.model_runner.get_model()
        with torch.inference_mode():
            return {f"rank{self.rank}:{name}": _digest(weight) for name, weight in _effective_weights(model)}


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
