"""A rank of a run that dwells in a phase, until one of its two ranks is lost; the next start goes on from there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import torch

from research.weights.checksummed_dir import corruption_in
from services.trainer.learner.learner import Learner
from services.trainer.learner.team import Team, follow
from services.trainer.parallel import heart
from services.trainer.parallel.ranks import Ranks
from services.trainer.run_dir.checkpoints import CheckpointStore, RunState
from services.trainer.weights.publisher import write_checkpoint
from tests.support.tiny_model import random_sequences, tiny_settings

BOUND_SECONDS = 4.0
STEPS = 16
PHASES = ("wait", "update", "save", "weights", "load")
SETTINGS = ("grpo.kl_coefficient=0.01", "optimizer.micro_batch_tokens=48")


def train(rank: int, port: int, model: Path, work: Path, phase: str, linger: float = 0.0) -> None:
    """Take part as one of two ranks; what it says goes to `<work>/log-<rank>`.

    The run makes one step and dwells in `phase`, one of `PHASES`; without one it goes on to its end, and rank 0 leaves
    `linger` seconds after the other.
    """
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    with (work / f"log-{rank}").open("wb") as log:
        os.dup2(log.fileno(), 2)
    take_part(model, work, phase, linger)


def take_part(model: Path, work: Path, phase: str, linger: float = 0.0) -> None:
    torch.set_num_threads(1)
    heart.BOUND_SECONDS = BOUND_SECONDS
    ranks = Ranks.join("cpu")
    (work / f"process-{ranks.rank}").write_text(str(os.getpid()))
    learner = Learner(tiny_settings(work, *SETTINGS), model, ranks)
    if ranks.leads:
        team = Team(learner, ranks)
        _lead(team, model, work, phase)
        team.close()
        time.sleep(linger)
    else:
        follow(learner, ranks)
    ranks.leave()


def _lead(team: Team, model: Path, work: Path, phase: str) -> None:
    store, versions = CheckpointStore(work / "checkpoints", keep=2), work / "weights"
    state = store.restore_latest(team)
    step = state.step if state else 0
    numbers = count(len(list(versions.glob("*"))))
    kinds: dict[str, Callable[[], object]] = {
        "wait": lambda: time.sleep(600),
        "update": lambda: team.grpo_update(random_sequences(6, seed=99)),
        "save": lambda: store.save(team, RunState(step, step, step, {}, {})),
        "weights": lambda: write_checkpoint(team.write_weights, model, versions / f"version-{next(numbers):06d}", ""),
        "load": lambda: store.restore_latest(team),
        "alone": lambda: _fail_alone(team),
    }
    while phase != "load" and step < STEPS:
        step += 1
        assert team.grpo_update(random_sequences(6, seed=step)) is not None
        kinds["save"]()
        if phase:
            break
    while phase:
        (work / "dwells").write_text("")
        kinds[phase]()


def _fail_alone(team: Team) -> None:
    """Rank 0 fails in an update and lives on, as a served trainer does."""

    def out_of_memory(*_: object) -> None:
        raise RuntimeError("out of memory")

    team._learner.grpo_update = out_of_memory  # type: ignore[method-assign,assignment]
    with suppress(RuntimeError):
        team.grpo_update(random_sequences(6, seed=99))
    time.sleep(600)


def half_written(work: Path) -> list[str]:
    """What is under a final name and not whole."""
    finished = [path for path in work.glob("*/*-*") if path.suffix == "" and path.is_dir()]
    return [f"{path}: {fault}" for path in finished if (fault := corruption_in(path))]


def main() -> None:
    """As torchrun starts it; what it starts again goes on to the end."""
    model, work, phase = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    take_part(model, work, phase if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else "")


if __name__ == "__main__":
    main()
