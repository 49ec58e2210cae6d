"""The state of a learner as files: tensors in safetensors, the rest in JSON, nothing pickled.

Every rank writes its own rows and reads those that it needs, so a run resumes on any number of ranks.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from research.atomic_io import write_json
from services.trainer.parallel.ranks import Ranks
from services.trainer.parallel.shards import SavedTensors, load_rows, one_by_one, save_part

MODEL, REFERENCE, OPTIMIZER = "model", "reference", "optimizer"
OPTIMIZER_GROUPS, RANDOM, SCALER = "optimizer.json", "random.json", "scaler.json"


class Stateful(Protocol):
    """What has the state of a learner (`Learner`)."""

    model: Any
    reference: Any
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    ranks: Ranks
    device: torch.device
    keeps_trained_only: bool


def write_learner(learner: Stateful, directory: Path) -> None:
    """Weights, optimizer state and random states, without the reference; `read_learner` restores them bit for bit.

    Returns once every rank has written its part; raises on every rank if one of them could not.
    """
    learner.ranks.together(lambda: _write_part(learner, directory))


def write_reference(learner: Stateful, directory: Path) -> None:
    """The weights of the reference; returns and raises as `write_learner`."""
    learner.ranks.together(lambda: save_part(_once(learner.reference), directory, REFERENCE, learner.ranks))


def _write_part(learner: Stateful, directory: Path) -> None:
    ranks = learner.ranks
    save_part(_once(learner.model, trained_only=learner.keeps_trained_only), directory, MODEL, ranks)
    save_part(_flat(learner), directory, OPTIMIZER, ranks)
    if ranks.leads:
        write_json(directory / OPTIMIZER_GROUPS, learner.optimizer.state_dict()["param_groups"])
        if learner.scaler.is_enabled():
            write_json(directory / SCALER, learner.scaler.state_dict())
        write_json(directory / RANDOM, _random_states(learner.device))


def read_learner(learner: Stateful, directory: Path, reference: Path) -> None:
    """Restore a learner with the same settings to the state that `write_learner` saved, by any number of ranks.

    `reference`: where `write_reference` wrote; not read if the learner has none.
    """
    load_rows(learner.model, directory, MODEL, trained_only=learner.keeps_trained_only)
    if learner.reference is not None:
        load_rows(learner.reference, reference, REFERENCE)
    groups = _read_json(directory / OPTIMIZER_GROUPS)
    for group in groups:
        group["betas"] = tuple(group["betas"])
        # Not part of the state: how the same step is computed.
        group |= {key: learner.optimizer.param_groups[0][key] for key in ("fused", "foreach")}
    learner.optimizer.load_state_dict({"state": _nested(learner, directory), "param_groups": groups})
    if learner.scaler.is_enabled() and (directory / SCALER).exists():
        learner.scaler.load_state_dict(_read_json(directory / SCALER))
    _set_random_states(_read_json(directory / RANDOM), learner.device)


def _once(model: Any, *, trained_only: bool = False) -> dict[str, Tensor]:
    return {names[0]: tensor.detach() for names, tensor in one_by_one(model, trained_only=trained_only)}


def _trained_names(learner: Stateful) -> list[str]:
    """Names of the optimizer's parameters, in its order."""
    names = {id(parameter): name for name, parameter in learner.model.named_parameters()}
    return [names[id(parameter)] for group in learner.optimizer.param_groups for parameter in group["params"]]


def _flat(learner: Stateful) -> dict[str, Tensor]:
    """{"lm_head.weight.exp_avg": tensor, …}"""
    names = _trained_names(learner)
    state = learner.optimizer.state_dict()["state"]
    return {f"{names[index]}.{key}": value for index, each in state.items() for key, value in each.items()}


def _nested(learner: Stateful, directory: Path) -> dict[int, dict[str, Tensor]]:
    """The state of the optimizer, divided as the parameters are; {} if it has made no step."""
    saved = SavedTensors(directory, OPTIMIZER)
    there = set(saved.names())
    parameters = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(zip(_trained_names(learner), parameters, strict=True)):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            # By number, as it was until 2026-11.
            known = [each for each in (f"{name}.{key}", f"{index}.{key}") if each in there]
            if not known:
                continue
            value = torch.zeros(()) if key == "step" else torch.zeros_like(parameter)
            saved.copy_into(known[0], value)
            state.setdefault(index, {})[key] = value
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
