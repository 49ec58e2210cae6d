"""Reads checkpoints in safetensors tensor by tensor, for all code that loads, sends or checks one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from research.errors import AssetError


def weight_files(checkpoint: Path) -> list[Path]:
    """The weight files of a directory, by name; or the one file that was named.

    Raises AssetError if there is none: a checkpoint without weights is never a checkpoint of none.
    """
    files = sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else [checkpoint]
    if not files or not all(file.is_file() and file.suffix == ".safetensors" for file in files):
        raise AssetError(f"{checkpoint} holds no .safetensors file; only safetensors checkpoints are accepted")
    return files


def tensors_of(checkpoint: Path, device: torch.device | str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of each weight, one at a time, in a fixed order; raises what safetensors raises."""
    for file in weight_files(checkpoint):
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)


def slices_of(checkpoint: Path) -> Iterator[tuple[str, Any]]:
    """Name and slice of each weight, in the order of `tensors_of`: dtype and shape without the numbers."""
    for file in weight_files(checkpoint):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_slice(name)
