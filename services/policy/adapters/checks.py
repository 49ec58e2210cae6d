"""Checks on a LoRA adapter before its first byte is loaded: its type, its rank, and that it fits the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, Field, FiniteFloat

from research.errors import AssetError
from services.policy.weights.checkpoint_checks import TensorSpec, tensor_specs

MAX_LOADED = 8
# Adapters that compute together; requests for further ones wait.
MAX_AT_ONCE = 2
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")


class _Config(BaseModel):
    """What we read of PEFT's `adapter_config.json`; vLLM reads and checks the rest."""

    peft_type: str = "LORA"
    r: int = Field(gt=0)
    lora_alpha: FiniteFloat


def require_adapter(path: Path, base: Mapping[str, TensorSpec], max_rank: int) -> None:
    """Check an adapter directory in PEFT's format against the served model.

    Args:
        path: the directory.
        base: the tensors of the served model.
        max_rank: the largest rank that the server was started for.

    Raises:
        AssetError: it is not a LoRA adapter in safetensors, or does not fit; the message names the first faults.
    """
    config = _config(path)
    if config.peft_type.upper() != "LORA":
        raise AssetError(f"{path} is an adapter of type {config.peft_type}; only LORA can be loaded")
    if config.r > max_rank:
        raise AssetError(f"{path} has rank {config.r}, more than policy.max_lora_rank ({max_rank})")
    if not (path / WEIGHTS_FILE).is_file():
        raise AssetError(f"{path} holds no {WEIGHTS_FILE}; only safetensors adapters are accepted")
    specs = tensor_specs(path / WEIGHTS_FILE)
    faults = [fault for name, spec in specs.items() if (fault := _fault(name, spec, specs, base, max_rank))]
    if faults or not specs:
        raise AssetError(f"the adapter does not fit the served model: {'; '.join(faults[:3]) or 'it has no tensors'}")


def _config(path: Path) -> _Config:
    try:
        return _Config.model_validate(json.loads((path / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise AssetError(f"{path} has no valid {CONFIG_FILE}: {error}") from error


def _fault(
    name: str, spec: TensorSpec, halves: Mapping[str, TensorSpec], base: Mapping[str, TensorSpec], max_rank: int
) -> str | None:
    """What is wrong with a tensor: A is [rank, in], B is [out, rank], of a matrix [out, in] of the model."""
    found = _NAME.fullmatch(name)
    if found is None:
        return f"{name} is not half of a LoRA matrix"
    matrix = base.get(f"{found['module']}.weight")
    if matrix is None or len(matrix.shape) != 2:
        return f"{name}: the model has no matrix {found['module']}"
    if found["half"] == "B":
        return None if name.replace(".lora_B.", ".lora_A.") in halves else f"{name} lacks its other half"
    other = halves.get(name.replace(".lora_A.", ".lora_B."))
    if other is None:
        return f"{name} lacks its other half"
    rows, columns = matrix.shape
    rank = spec.shape[0] if spec.shape else 0
    if spec.shape != (rank, columns) or other.shape != (rows, rank) or not 0 < rank <= max_rank:
        return f"{name} is {list(spec.shape)}, its other half is {list(other.shape)}; the matrix is {[rows, columns]}"
    return None
