"""The simulator against a recorded run: rates from the first half of its steps, predictions for the second."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks.simulation.machines import cpu_machines
from benchmarks.simulation.recorded import RecordedStep
from benchmarks.simulation.settings import Conduct, Machines
from benchmarks.simulation.training import simulate
from benchmarks.simulation.workload import drawn
from research.markdown import markdown_table

_DRAWS = 50


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of one step of the second half: as it was, and as it was predicted in its two ways."""

    step: int
    seconds: float
    given: float  # by the rates and this step's lengths
    drawn: float  # by the rates and lengths of the first half

    def error(self, predicted: float) -> float:
        return predicted / self.seconds - 1


def calibrated(steps: Sequence[RecordedStep]) -> Machines:
    """The machine on which `steps` were made: one factor for the policy server, seconds per token for the learner."""
    computed = sum(step.computed for step in steps)
    token = sum(step.update for step in steps) / computed
    publish = fmean(step.publish for step in steps)
    machines, speed = cpu_machines(1.0, token, publish), 1.0
    for _ in range(3):  # searches do not become slower with the server, so that one factor is found in steps
        simulated = sum(step_seconds(machines, step) for step in steps) - token * computed - publish * len(steps)
        speed *= sum(step.rollout for step in steps) / simulated
        machines = cpu_machines(speed, token, publish)
    return machines


def step_seconds(machines: Machines, step: RecordedStep) -> float:
    """Seconds that a strictly on-policy step with the lengths of `step` would take."""
    # As many groups again, which nobody waits for, begin when the step ends.
    return simulate(machines, Conduct(len(step.groups)), iter(step.groups * 2), 1).median


def predictions(steps: Sequence[RecordedStep], seed: int) -> list[Prediction]:
    """For each step of the second half; nothing of it but its lengths is used, and these in `given` only."""
    half = len(steps) // 2
    first, second = steps[:half], steps[half:]
    machines = calibrated(first)
    groups = [group for step in first for group in step.groups]
    drawing = drawn(groups, random.Random(seed))
    expected = median(simulate(machines, Conduct(len(first[0].groups)), drawing, _DRAWS).steps)
    return [
        Prediction(half + number, step.seconds, step_seconds(machines, step), expected)
        for number, step in enumerate(second, 1)
    ]


def report(steps: Sequence[RecordedStep], seed: int) -> str:
    """The predictions as a table, with their errors and the rates that they come from."""
    machines = calibrated(steps[: len(steps) // 2])
    made = predictions(steps, seed)
    rows = [
        (
            str(each.step),
            f"{each.seconds:.1f}",
            f"{each.given:.1f} ({each.error(each.given):+.0%})",
            f"{each.drawn:.1f} ({each.error(each.drawn):+.0%})",
        )
        for each in made
    ]
    of_given, of_drawn = (
        fmean(abs(each.error(predicted)) for each, predicted in zip(made, way, strict=True))
        for way in ([each.given for each in made], [each.drawn for each in made])
    )
    rates = machines.server
    return "\n".join(
        [
            f"Rates from steps 1 to {len(steps) - len(made)}: an iteration takes {1e3 * rates.iteration:.1f} ms + "
            f"{1e3 * rates.per_sequence:.2f} ms per running sequence, prefill {1e3 * rates.prefill:.2f} ms per token, "
            f"an update {1e3 * machines.learner.token:.2f} ms per token, publishing {machines.learner.publish:.1f} s.",
            "",
            markdown_table(
                ("step", "seconds", "predicted for its lengths", "predicted for lengths drawn from the first half"),
                rows,
            ),
            "",
            f"Mean absolute error: {of_given:.1%} for given lengths, {of_drawn:.1%} for drawn ones.",
        ]
    )
