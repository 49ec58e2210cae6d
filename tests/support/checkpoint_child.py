"""A process that trains a tiny model and saves a checkpoint after each step, until it is killed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from services.trainer.learner.learner import Learner
from services.trainer.run_dir.checkpoints import CheckpointStore, RunState
from tests.support.tiny_model import random_sequences, tiny_settings

KEEP = 2


def new_learner(model: Path, work: Path) -> Learner:
    torch.set_num_threads(1)
    return Learner(tiny_settings(work, "grpo.kl_coefficient=0.01", "optimizer.warmup_steps=50"), model)


def digest(learner: Learner, state: RunState) -> str:
    """SHA-256 over every bit that a checkpoint has to bring back."""
    assert learner.reference is not None
    tensors = {f"model.{name}": value for name, value in learner.model.state_dict().items()}
    tensors |= {f"reference.{name}": value for name, value in learner.reference.state_dict().items()}
    optimizer = learner.optimizer.state_dict()
    for index, values in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors["rng"] = torch.get_rng_state()
    total = hashlib.sha256(repr((learner.updates, optimizer["param_groups"])).encode())
    total.update(json.dumps(asdict(state), sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def train_and_save(model: Path, work: Path, told: Connection) -> None:
    """Go on from the newest checkpoint; before each save, tell the step and the digest of what is to be saved."""
    learner = new_learner(model, work)
    store = CheckpointStore(work / "checkpoints", KEEP)
    state = store.restore_latest(learner)
    step = state.step if state is not None else 0
    while True:
        step += 1
        torch.rand(step)  # so that the random state is another at each step
        assert learner.grpo_update(random_sequences(2, seed=step)) is not None
        state = RunState(step, step + 1, learner.updates, {"": step}, {"update": step / 7}, {"level": step / 3})
        told.send((step, digest(learner, state)))
        store.save(learner, state)
