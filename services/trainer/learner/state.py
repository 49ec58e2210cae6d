"""The state of a learner as files: tensors in safetensors, the rest in JSON, nothing pickled."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor

from research.atomic_io import write_json
from services.trainer.learner.learner import Learner

MODEL, REFERENCE, OPTIMIZER = "model.safetensors", "reference.safetensors", "optimizer.safetensors"
OPTIMIZER_GROUPS, RANDOM, SCALER = "optimizer.json", "random.json", "scaler.json"


def write_learner(learner: Learner, directory: Path) -> None:
    """Weights, optimizer state and random states; `read_learner` restores them bit for bit."""
    save_model(learner.model, str(directory / MODEL))
    if learner.reference is not None:
        save_model(learner.reference, str(directory / REFERENCE))
    optimizer = learner.optimizer.state_dict()
    save_file(_flat(optimizer["state"]), directory / OPTIMIZER)
    write_json(directory / OPTIMIZER_GROUPS, optimizer["param_groups"])
    if learner.scaler.is_enabled():
        write_json(directory / SCALER, learner.scaler.state_dict())
    write_json(directory / RANDOM, _random_states(learner.device))


def read_learner(learner: Learner, directory: Path) -> None:
    """Restore a learner with the same settings to the state that `write_learner` saved."""
    device = str(learner.device)
    load_model(learner.model, str(directory / MODEL), device=device)
    if learner.reference is not None:
        load_model(learner.reference, str(directory / REFERENCE), device=device)
    groups = _read_json(directory / OPTIMIZER_GROUPS)
    for group in groups:
        group["betas"] = tuple(group["betas"])
    state = _nested(load_file(directory / OPTIMIZER))
    learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if learner.scaler.is_enabled() and (directory / SCALER).exists():
        learner.scaler.load_state_dict(_read_json(directory / SCALER))
    _set_random_states(_read_json(directory / RANDOM), learner.device)


def _flat(state: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    """{3: {"exp_avg": t}} → {"3.exp_avg": t}"""
    return {f"{index}.{name}": value.contiguous() for index, each in state.items() for name, value in each.items()}


def _nested(flat: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    return state


def _random_states(device: torch.device) -> dict[str, Any]:
    states = {"python": random.getstate(), "torch": _hex(torch.get_rng_state())}
    return states | ({"cuda": _hex(torch.cuda.get_rng_state(device))} if device.type == "cuda" else {})


def _set_random_states(states: dict[str, Any], device: torch.device) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(_bytes(states["torch"]))
    # A run that moves from a CPU to a GPU has no GPU state to continue from.
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_bytes(states["cuda"]), device)


def _hex(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
