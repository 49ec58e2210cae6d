"""The state of a run as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from research.scoring.signs import Signs
from services.trainer.entry import Entry, GrpoEntry, is_grpo
from services.trainer.status import RunPhase, RunStatus

_OF_LAST_STEP = (
    "reward",
    "em",
    "f1",
    "well_formed",
    "truncated",
    "searches",
    "sampled_tokens",
    "silent_groups",
    "corrected",
    "solved_groups",
    "infra_share",
    *Signs.__annotations__,
)


def render_metrics(status: RunStatus, steps: Sequence[Entry]) -> bytes:
    """All gauges in the text format; the last finished step gives the values."""
    registry = CollectorRegistry()
    Gauge("research_trainer_step", "Finished or current step.", registry=registry).set(status.step)
    Gauge("research_trainer_version", "Weight version that is served.", registry=registry).set(status.version)
    phase = Gauge("research_trainer_phase", "1 for the phase that the run is in.", ["phase"], registry=registry)
    for each in RunPhase:
        phase.labels(each).set(each is status.phase)
    if steps:
        last: Mapping[str, Any] = steps[-1]
        for name in _OF_LAST_STEP if is_grpo(steps[-1]) else ():
            if name in last:  # an old run may lack some
                Gauge(f"research_trainer_step_{name}", f"Mean {name} of the last step.", registry=registry).set(
                    last[name]
                )
        if is_grpo(steps[-1]):
            _show_rollout(steps[-1], registry)
        seconds = Gauge(
            "research_trainer_step_seconds", "Seconds of the last step by phase.", ["phase"], registry=registry
        )
        for name, value in last["seconds"].items():
            seconds.labels(name).set(value)
        for name, value in (last["update"] or {}).items():
            Gauge(f"research_trainer_update_{name}", f"{name} of the last update.", registry=registry).set(value)
    return generate_latest(registry)


def _show_rollout(entry: GrpoEntry, registry: CollectorRegistry) -> None:
    stops = Gauge(
        "research_trainer_step_stop_reasons",
        "Episodes of the last step by why they ended; time_limit: a turn did not end in its time, or was cut.",
        ["reason"],
        registry=registry,
    )
    for reason, count in entry["stop_reasons"].items():
        stops.labels(reason).set(count)
    if (rollout := entry.get("rollout")) is None:
        return
    for name, value in (
        ("refill_rounds", rollout["refill_rounds"]),
        ("signal_before", rollout["signal_before"]),
        ("signal_after", rollout["signal_after"]),
        ("unusable", len(rollout["unusable"])),
    ):
        Gauge(f"research_trainer_rollout_{name}", f"{name} of the last step.", registry=registry).set(value)
