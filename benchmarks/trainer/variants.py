"""Real training runs that differ in one setting: what a step takes, what it trains on, and how the answers change.

Run: python -m benchmarks.trainer.variants overlap|refill|objectives [--seeds 1 2 3] [--steps 6] [--only NAME …]
[--runs runs/variants] [section.key=value …]; needs `research prepare`. Retriever and policy are started once. Per seed
there is one supervised phase, from whose end every run goes on; the preset is quickstart-cpu. What is finished is kept
in --runs and not run again. Writes a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from statistics import fmean, median
from typing import Any

from benchmarks.retriever.load import SERVE, free_port, serving
from services.trainer.run_dir.references import link_checkpoint
from services.web.auth import ADMIN_TOKEN_VARIABLE

TOKEN = "a-token-of-variants"
VARIANTS: Mapping[str, Mapping[str, list[str]]] = {
    "overlap": {f"staleness {n}": [f"trainer.max_staleness={n}"] for n in (0, 1, 2)},
    "refill": {"no refill": [], "refill": ["grpo.refill_rounds=2"]},
    "objectives": {
        name: [f"grpo.objective={name}"]
        for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++", "reinforce++_baseline")
    },
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has recorded: an entry per step, and the figures of its evaluations."""

    steps: list[dict[str, Any]]
    before: dict[str, Any]
    after: dict[str, Any]

    @staticmethod
    def of(directory: Path) -> Outcome:
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        before, after = (
            json.loads((directory / "evaluations" / f"{name}.json").read_text()) for name in ("sft", "after")
        )
        return Outcome([json.loads(line) for line in lines], before, after)

    def mean(self, value: Callable[[dict[str, Any]], float]) -> float:
        """Over the steps, without the first: with overlap it waits for more episodes than the others."""
        return fmean(value(entry) for entry in self.steps[1:])

    def updates(self, name: str) -> float:
        return fmean(entry["update"][name] for entry in self.steps if entry["update"])


COLUMNS: Mapping[str, Callable[[Outcome], str]] = {
    "steps/h": lambda run: f"{3600 / median(sum(step['seconds'].values()) for step in run.steps[1:]):.0f}",
    "rollout s": lambda run: f"{run.mean(lambda step: step['seconds'].get('rollout', 0.0)):.1f}",
    "update s": lambda run: f"{run.mean(lambda step: step['seconds'].get('update', 0.0)):.1f}",
    "publish s": lambda run: f"{run.mean(lambda step: step['seconds'].get('publish', 0.0)):.1f}",
    "staleness": lambda run: f"{run.mean(lambda step: step['rollout']['staleness']):.2f}",
    "several versions": lambda run: f"{run.mean(lambda step: step['rollout']['several_versions']):.2f}",
    "dropped": lambda run: f"{sum(step['rollout']['dropped_groups'] for step in run.steps)}",
    "mismatch KL": lambda run: f"{run.updates('mismatch_kl'):.4f}",
    "signal": lambda run: f"{run.mean(lambda step: step['rollout']['signal_after']):.2f}",
    "episodes": lambda run: f"{sum(step['episodes'] for step in run.steps)}",
    "reward, first and last step": lambda run: f"{run.steps[0]['reward']:.3f}, {run.steps[-1]['reward']:.3f}",
    "EM before": lambda run: em(run.before),
    "EM after": lambda run: em(run.after),
}


def em(figures: Mapping[str, Any]) -> str:
    """Exact match over all held-out questions."""
    asked = sum(kind["n"] for kind in figures.values())
    return f"{sum(kind['em'] * kind['n'] for kind in figures.values()) / asked:.3f}"


def main() -> None:
    """Run what is not finished, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*VARIANTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the variants, these, such as 'staleness 1'")
    parser.add_argument("--runs", type=Path, default=Path("runs/variants"))
    parser.add_argument("overrides", nargs="*", help="settings for all, such as grpo.questions_per_step=8")
    arguments = parser.parse_intermixed_args()
    os.environ[ADMIN_TOKEN_VARIABLE] = TOKEN
    runs: Path = arguments.runs.resolve()
    variants = VARIANTS[arguments.what]
    if unknown := [name for name in arguments.only or () if name not in variants]:
        parser.error(f"--only: there is no {', '.join(unknown)}; {arguments.what} has {', '.join(variants)}")
    cases = [(name, variants[name], seed) for seed in arguments.seeds for name in arguments.only or variants]
    with ExitStack() as services:
        places: list[str] = []
        for name, own, seed in cases:
            directory = runs / slug(arguments.what, name, seed)
            if (directory / "summary.json").is_file():
                continue
            places = places or start(services, runs, arguments.overrides)
            warm = runs / f"sft-{seed}"
            common = [*places, *arguments.overrides, f"seed={seed}"]
            if not (warm / "checkpoints" / "step-000000").is_dir():
                train([*common, f"run={warm.name}", "grpo.steps=0"])
            if not directory.exists():
                link_checkpoint(warm / "checkpoints" / "step-000000", directory / "checkpoints")
                copytree(warm / "evaluations", directory / "evaluations")
            train([*common, *own, f"run={directory.name}", f"grpo.steps={arguments.steps}"])
    print(
        table(
            [(f"{name}, seed {seed}", Outcome.of(runs / slug(arguments.what, name, seed))) for name, _, seed in cases]
        )
    )


def slug(what: str, name: str, seed: int) -> str:
    return f"{what}-{name.replace(' ', '-').replace('+', 'p')}-{seed}"


def start(services: ExitStack, runs: Path, overrides: Sequence[str]) -> list[str]:
    """Start retriever and policy; returns the settings that lead a trainer to them."""
    retriever, policy, trainer = free_port(), free_port(), free_port()
    services.enter_context(serving([*SERVE, f"retriever.port={retriever}", *overrides], retriever))
    places = [
        f"paths.runs={runs}",
        f"endpoints.retriever_url=http://127.0.0.1:{retriever}",
        f"policy.port={policy}",
        f"trainer.port={trainer}",
    ]
    services.enter_context(serving([*SERVE[:-1], "policy", *places, *overrides], policy, seconds=300))
    return places


def train(arguments: Sequence[str]) -> None:
    """Follow a run to its end."""
    subprocess.run([sys.executable, "-m", "cli.main", "train", *arguments], check=True, stdout=sys.stderr)


def table(outcomes: Sequence[tuple[str, Outcome]]) -> str:
    """One row per run."""
    rows = [[name, *(show(outcome) for show in COLUMNS.values())] for name, outcome in outcomes]
    head = ["run", *COLUMNS]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    main()
