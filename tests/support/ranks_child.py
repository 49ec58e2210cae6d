"""What each process does in the tests of several ranks; torchrun starts it with a scenario and a directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from services.trainer.learner.learner import Learner
from services.trainer.learner.team import Team, follow
from services.trainer.parallel.ranks import Ranks
from tests.support import tiny_run
from tests.support.tiny_model import random_sequences, tiny_settings

SETTINGS = ["grpo.kl_coefficient=0.01", "grpo.entropy_coefficient=0.01", "optimizer.micro_batch_tokens=48"]
SETTINGS += ["alarms.likelihood_share=0.5"]
STEPS = 5


def update(team: Team, work: Path) -> dict[str, Any]:
    """Five updates, the last of a single episode, so that a rank has nothing; then everything is written."""
    batches = [random_sequences(7, seed=step) for step in range(1, STEPS)] + [random_sequences(1, seed=STEPS)]
    before = team.logprobs(batches[0])
    losses = [team.supervised_update(batches[0], 1e-3, "sft") for _ in range(2)]
    team.end_sft()
    batches = [[replace(each, right=each.advantages[0] > 0) for each in batch] for batch in batches]
    reports = [asdict(report) for batch in batches if (report := team.grpo_update(batch)) is not None]
    write_all(team, work)
    return {"before": before, "losses": losses, "reports": reports, "after": team.logprobs(batches[0])}


def write_all(team: Team, work: Path) -> None:
    for name in ("checkpoint", "reference", "weights"):
        (work / name).mkdir(parents=True)
    team.save(work / "checkpoint")
    if team.reference_changes is not None:
        team.save_reference(work / "reference")
    team.write_weights(work.parent / "tiny", work / "weights")


def again(team: Team, work: Path) -> dict[str, Any]:
    """Load the checkpoint `from`, save it again as it is and gather its weights, then make one more update."""
    reference = work / "from-reference"
    team.load(work / "from", reference if reference.exists() else work / "from")
    write_all(team, work)
    gathered = team.gather_weights(work.parent / "tiny")
    report = team.grpo_update(random_sequences(7, seed=99))
    assert report is not None
    save_file(gathered, work / "gathered.safetensors")
    return {"report": asdict(report)}


SCENARIOS: dict[str, Callable[[Team, Path], dict[str, Any]]] = {"update": update, "again": again}


def run(ranks: Ranks, work: Path) -> None:
    """A whole run of the tiny model, against the policy in this process."""
    telling, _told = Pipe()
    tiny_run.train(work.parent / "tiny", work, telling, ranks=ranks)


def main() -> None:
    scenario, work = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    ranks = Ranks.join("cpu")
    if ranks.leads and scenario == "run":
        run(ranks, work)
        ranks.leave()
        return
    settings = tiny_settings(work, *(tiny_run.SETTINGS if scenario == "run" else SETTINGS), *sys.argv[3:])
    learner = Learner(settings, work.parent / "tiny", ranks)
    if ranks.leads:
        team = Team(learner, ranks)
        (work / "result.json").write_text(json.dumps(SCENARIOS[scenario](team, work)))
        team.close()
    else:
        follow(learner, ranks)
    ranks.leave()


if __name__ == "__main__":
    main()
