"""NaN or infinity in the weights would make every answer nonsense: such a checkpoint is refused."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError

from research.errors import AssetError
from services.transport.safetensors_files import tensors_of, weight_files


def require_finite(checkpoint: Path) -> None:
    """Read every tensor once, before anything is loaded.

    Raises:
        AssetError: a tensor holds NaN or infinity, or cannot be read; the message names it.
    """
    for file in weight_files(checkpoint):
        try:
            for name, tensor in tensors_of(file):
                if not torch.isfinite(tensor).all():
                    raise AssetError(f"{name} in {file} holds numbers that are not finite")
        except (SafetensorError, OSError) as error:
            raise AssetError(f"cannot read {file}: {error}") from error
