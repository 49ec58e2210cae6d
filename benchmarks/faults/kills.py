"""Runs with random kills, of trainer, policy and retriever: each finishes and loses no group.

  python -m benchmarks.faults kills [--count 10] [--steps 30] [--of trainer retriever policy] [--seed 1]

Each run gets --kills kills, spread over its steps by its seed, each in a random phase at a random request. Then its
journal is trained on again, in a run that nothing kills: on-policy, with the same first checkpoint and with every
episode taken from the record, weights, optimizer and metrics must be the same, bit for bit. What is finished is kept in
--runs; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import kinds
from benchmarks.faults.cells import Cell
from benchmarks.faults.inject import Injection
from benchmarks.faults.kinds import PHASES, POLICY, RETRIEVER, TRAINER
from benchmarks.faults.moments import meet
from benchmarks.faults.record import Record
from benchmarks.faults.system.services import GROUPS, SIZE, Services, started

_RUN_SECONDS = 3600.0
_COMPARED = ("model.safetensors", "optimizer.safetensors", "optimizer.json")


@dataclass
class Killed:
    """One run: where it was killed, and what became of it and of its repetition."""

    run: str
    kills: list[str] = field(default_factory=list)
    steps: int = 0
    lost: int = 0
    twice: int = 0
    retried: int = 0
    wrong_files: list[str] = field(default_factory=list)
    differs: list[str] | None = None
    seconds: float = 0.0

    @property
    def line(self) -> str:
        same = "not compared" if self.differs is None else "; ".join(self.differs) or "the same, bit for bit"
        return (
            f"| {self.run} | {', '.join(self.kills)} | {self.steps} | {self.lost} | {self.twice} | {self.retried} | "
            f"{'; '.join(self.wrong_files) or 'whole'} | {same} | {self.seconds:.0f} |"
        )


def main(arguments: list[str]) -> None:
    """Run what has not been run, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=10, help="runs")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--kills", type=int, default=4, help="of each run")
    parser.add_argument("--of", nargs="+", default=[TRAINER, RETRIEVER, POLICY], choices=[TRAINER, RETRIEVER, POLICY])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/faults"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    chosen = parser.parse_args(arguments)
    work: Path = chosen.runs.resolve()
    kept, until = work / "kills.jsonl", time.monotonic() + 60 * chosen.minutes
    done = {each["run"]: Killed(**each) for each in _lines(kept)}
    names = [f"kills-{chosen.seed}-{number}" for number in range(1, chosen.count + 1)]
    left = [name for name in names if name not in done]
    print(f"{len(left)} of {len(names)} runs are to be run", flush=True)
    if left:
        with started(work, work / "kills") as services:
            for name in left:
                if time.monotonic() > until:
                    break
                done[name] = _killed(services, name, chosen.steps, chosen.kills, chosen.of)
                with kept.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(asdict(done[name])) + "\n")
                print(done[name].line, flush=True)
    print("\n| run | kills | steps | episodes lost | sampled twice | retried | files | trained again | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        if name in done:
            print(done[name].line)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _killed(services: Services, run: str, steps: int, kills: int, of: list[str]) -> Killed:
    rng, begun = random.Random(run), time.monotonic()
    for each in (run, f"{run}-again"):
        shutil.rmtree(services.disk / each, ignore_errors=True)
    found, record = Killed(run), services.record(run)
    overrides = [f"grpo.steps={steps}", "evaluation.interval=5", "checkpoints.interval=2", f"checkpoints.keep={steps}"]
    trainer = services.trainer_of(run, *overrides)
    trainer.start()
    remembered: dict[tuple[str, int], tuple[int, ...]] = {}
    # The last of them is in a step that has one after it.
    for after in sorted(rng.sample(range(1, steps - 2), kills)):
        trainer.await_that(f"step {after}", lambda after=after: record.last_step() >= after, _RUN_SECONDS)  # type: ignore[misc]
        target, phase = rng.choice(of), rng.choice([each for each in PHASES if each != "evaluation"])
        kind = next(each for each in kinds.KINDS if each.name == kinds.KILL and each.targets == (target,))
        injection = Injection(services, Cell(kind, target, phase, after, rng.randrange(1000)), run)
        met = meet(services, phase, target, rng, injection.begin)
        remembered = record.journalled() | remembered
        injection.end()
        found.kills.append(f"{target} in {met.phase} of step {met.step}")
        print(f"  {run}: {found.kills[-1]}", flush=True)
        if target == TRAINER:
            trainer.start()
    trainer.await_that("finished", lambda: not trainer.runs, _RUN_SECONDS)
    recorded = {place: each for step in range(1, steps + 1) for place, each in record.episodes(step).items()}
    found.steps = record.last_step() if trainer.exit_code == 0 else -1
    found.lost = steps * GROUPS * SIZE - len(recorded)
    found.twice = sum(place in recorded and recorded[place] != tokens for place, tokens in remembered.items())
    found.retried = sum(entry["infra_errors"] for entry in record.steps().values())
    found.wrong_files = record.damage(range(1, steps + 1))
    found.differs = _trained_again(services, record, f"{run}-again", steps, overrides)
    found.seconds = time.monotonic() - begun
    if not (found.differs or found.wrong_files or found.lost):
        for each in (run, f"{run}-again"):
            shutil.rmtree(services.disk / each)
    return found


def _trained_again(services: Services, first: Record, run: str, steps: int, overrides: list[str]) -> list[str]:
    """Train on what a run has sampled, from its first checkpoint on; returns what differs."""
    again = services.record(run)
    shutil.copytree(first.directory / "episodes", again.directory / "episodes")
    for name in ("step-000000", "reference-01"):
        if (checkpoint := first.directory / "checkpoints" / name).is_dir():
            shutil.copytree(checkpoint, again.directory / "checkpoints" / name)
    generated = services.proxies[POLICY].counts["/inference/v1/generate"]
    trainer = services.trainer_of(run, *overrides, "evaluation.interval=0", "alarms.start_mismatch_ceiling=None")
    trainer.start()
    trainer.await_that("finished", lambda: not trainer.runs, _RUN_SECONDS)
    last = [record.directory / "checkpoints" / f"step-{steps:06d}" for record in (first, again)]
    differs = [name for name in _COMPARED if (last[0] / name).read_bytes() != (last[1] / name).read_bytes()]
    ours, theirs = (_without_seconds(record.steps()) for record in (first, again))
    # Of repeated episodes none is sampled, so none is retried.
    differs += [f"metrics of step {step}" for step in ours if ours[step] != theirs.get(step)]
    asked = services.proxies[POLICY].counts["/inference/v1/generate"] - generated
    print(f"  {run}: {asked} turns sampled, all for evaluations", flush=True)
    return differs


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = ("seconds", "infra_errors", "infra_share")
        return {key: _without_seconds(each) for key, each in value.items() if not str(key).endswith(dropped)}
    return [_without_seconds(each) for each in value] if isinstance(value, list) else value
