"""What a LoRA adapter must be before anything of it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from research.errors import AssetError
from services.policy.adapters.checks import require_adapter
from services.policy.weights.checkpoint_checks import TensorSpec

BASE = {"model.q_proj.weight": TensorSpec("F32", (6, 4)), "model.norm.weight": TensorSpec("F32", (4,))}
Q = "base_model.model.model.q_proj"


def write(path: Path, tensors: dict[str, tuple[int, ...]], **config: Any) -> Path:
    path.mkdir()
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return path


def test_a_sound_adapter_passes(tmp_path: Path) -> None:
    sound = write(tmp_path / "a", {f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (6, 2)})
    require_adapter(sound, BASE, max_rank=8)


@pytest.mark.parametrize(
    ("tensors", "config", "named"),
    [
        ({f"{Q}.lora_A.weight": (2, 4)}, {}, "lacks its other half"),
        ({f"{Q}.lora_B.weight": (6, 2)}, {}, "lacks its other half"),
        ({f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (6, 3)}, {}, "other half"),
        ({f"{Q}.lora_A.weight": (4, 2), f"{Q}.lora_B.weight": (2, 6)}, {}, "the matrix is"),
        ({f"{Q}.lora_A.weight": (9, 4), f"{Q}.lora_B.weight": (6, 9)}, {}, "the matrix is"),
        ({f"{Q}.lora_A.weight": (2,), f"{Q}.lora_B.weight": (6, 2)}, {}, "the matrix is"),
        ({"base_model.model.model.norm.lora_A.weight": (2, 4)}, {}, "no matrix model.norm"),
        ({"base_model.model.lm_head.modules_to_save.weight": (2, 4)}, {}, "not half of a LoRA matrix"),
        ({}, {}, "no tensors"),
        ({f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (6, 2)}, {"r": 16}, "rank 16"),
        ({f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (6, 2)}, {"lora_alpha": float("nan")}, "lora_alpha"),
        ({f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (6, 2)}, {"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], config: dict[str, Any], named: str
) -> None:
    with pytest.raises(AssetError, match=named):
        require_adapter(write(tmp_path / "a", tensors, **config), BASE, max_rank=8)
