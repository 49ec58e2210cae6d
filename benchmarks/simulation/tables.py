"""The answers as tables, and all that they assume."""

from __future__ import annotations

import random
from dataclasses import asdict

from benchmarks.simulation.cases import AROUND, ASSUMED, PAPER, PRESET, QUESTIONS, Case
from benchmarks.simulation.outcome import Outcome
from benchmarks.simulation.training import simulate
from benchmarks.simulation.workload import StatedShape, drawn
from research.markdown import markdown_table

_POOL = 4096  # groups that are drawn from
_HEAD = (
    "case",
    "step, s: median",
    "p90",
    "steps/h",
    "policy works",
    "learner works",
    "sampled tokens/s",
    "groups with signal/h",
    "prompts cached",
    "prefilled M tokens/step",
    "redrawn, dropped groups/step",
    "staleness",
)


def table(question: str, steps: int, seed: int) -> str:
    """The cases of one question, each simulated for `steps` steps after it has got going."""
    title, cases = QUESTIONS[question]
    rows = [(case.name, *_cells(_simulated(case, steps, seed))) for case in cases()]
    return f"## {title}\n\n{markdown_table(_HEAD, rows)}\n"


def assumptions() -> str:
    """What the tables assume, as a list."""
    named = {"`research plan`": asdict(ASSUMED), "lengths of episodes": asdict(PAPER), "surroundings": asdict(AROUND)}
    lines = (
        f"- {name}: " + "; ".join(f"{key} {value:g}" for key, value in each.items()) for name, each in named.items()
    )
    return f"## Assumptions\n\nGPUs: preset {PRESET}, H100s.\n\n" + "\n".join(lines)


def _simulated(case: Case, steps: int, seed: int) -> Outcome:
    # Every case of a question gets the same groups.
    chance = random.Random(seed)
    workload = case.workload
    groups = workload.groups(_POOL, chance) if isinstance(workload, StatedShape) else workload
    warming = 1 + case.conduct.staleness
    return simulate(case.machines, case.conduct, drawn(groups, chance), steps, warming=warming, seed=seed)


def _cells(made: Outcome) -> tuple[str, ...]:
    return (
        f"{made.median:.1f}",
        f"{made.p90:.1f}",
        f"{made.per_hour:.1f}",
        f"{made.policy:.0%}",
        f"{made.learner:.0%}",
        f"{made.tokens_per_second:.0f}",
        f"{made.signal:.0f}",
        f"{made.cached:.0%}",
        f"{made.prefilled / 1e6:.3g}",
        f"{made.redrawn:.0f}, {made.dropped:.1f}",
        ", ".join(f"{lag}: {share:.0%}" for lag, share in made.staleness.items()),
    )
