"""Checks on a LoRA adapter before its first byte is loaded: what it is for, how large it is, and that it fits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from research.errors import AssetError
from services.policy.checkpoint_files import TensorSpec, tensor_specs

# vLLM keeps more of them in memory than that: what it does not keep it would read from disk again, unchecked.
MAX_LOADED = 8
# Those that answer together; requests for further ones wait.
MAX_AT_ONCE = 2
WEIGHTS_FILE = "adapter_model.safetensors"
_CONFIG_FILE = "adapter_config.json"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")


class _Config(BaseModel):
    """What we read of PEFT's `adapter_config.json`; vLLM reads and checks the rest."""

    peft_type: str = "LORA"
    r: int = Field(gt=0)


def require_adapter(path: Path, base: Mapping[str, TensorSpec], max_rank: int) -> None:
    """Check an adapter directory in PEFT's format against the served model.

    Args:
        path: the directory.
        base: the tensors of the served model.
        max_rank: the largest rank that the server was started for.

    Raises:
        AssetError: it is no LoRA adapter in safetensors, or does not fit; the message names the first fault.
    """
    config = _config(path)
    if config.peft_type.upper() != "LORA":
        raise AssetError(f"{path} is an adapter of the type {config.peft_type}; only LORA can be loaded")
    if config.r > max_rank:
        raise AssetError(f"{path} has rank {config.r}; the server was started for ranks up to {max_rank}")
    if not (path / WEIGHTS_FILE).is_file():
        raise AssetError(f"{path} holds no {WEIGHTS_FILE}; only safetensors adapters are accepted")
    faults = [fault for name, spec in _specs(path).items() if (fault := _fault(name, spec, base, max_rank))]
    if faults:
        raise AssetError(f"the adapter does not fit the served model: {'; '.join(faults[:3])}")


def _specs(path: Path) -> dict[str, TensorSpec]:
    specs = tensor_specs(path / WEIGHTS_FILE)
    if not specs:
        raise AssetError(f"{path / WEIGHTS_FILE} holds no tensors")
    return specs


def _config(path: Path) -> _Config:
    try:
        return _Config.model_validate(json.loads((path / _CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise AssetError(f"{path} has no sound {_CONFIG_FILE}: {error}") from error


def _fault(name: str, spec: TensorSpec, base: Mapping[str, TensorSpec], max_rank: int) -> str | None:
    """What is wrong with a tensor: A is [rank, in], B is [out, rank], of a matrix [out, in] of the model."""
    found = _NAME.fullmatch(name)
    if found is None:
        return f"{name} is no half of a LoRA matrix"
    matrix = base.get(f"{found['module']}.weight")
    if matrix is None or len(matrix.shape) != 2:
        return f"{name}: the model has no matrix {found['module']}"
    side, rank_side, size = (1, 0, matrix.shape[1]) if found["half"] == "A" else (0, 1, matrix.shape[0])
    if len(spec.shape) != 2 or spec.shape[side] != size or not 0 < spec.shape[rank_side] <= max_rank:
        return f"{name} is {list(spec.shape)}; the matrix is {list(matrix.shape)}"
    return None
