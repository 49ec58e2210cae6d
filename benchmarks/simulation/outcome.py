"""What a simulated run came to, after the steps in which it got going."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums since the run began, at the end of a step; tokens and seconds of servers are those of all servers."""

    now: float = 0.0
    server_seconds: float = 0.0
    learner_seconds: float = 0.0
    sampled: int = 0
    prompted: int = 0
    prefilled: int = 0
    recomputed: int = 0
    signal: int = 0
    dropped: int = 0
    redrawn: int = 0
    staleness: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of the steps that count.

    Attributes:
        steps: seconds from the end of one step to the end of the next.
        policy, learner: share of the time in which a policy server has running requests, and the learner updates.
        tokens_per_second: sampled, of all servers.
        cached: share of the prompt tokens that the prefix cache had.
        prefilled: tokens per step that servers computed of prompts, and anew for new weights.
        signal: groups with a signal that were trained on, per hour.
        dropped: groups per step that were too stale to be trained on.
        redrawn: groups per step that others replaced because they had no signal.
        staleness: share of the trained episodes by the number of updates that their first token lags behind.
    """

    steps: tuple[float, ...]
    policy: float
    learner: float
    tokens_per_second: float
    cached: float
    prefilled: float
    signal: float
    dropped: float
    redrawn: float
    staleness: dict[int, float]

    @property
    def median(self) -> float:
        return median(self.steps)

    @property
    def p90(self) -> float:
        return quantiles(self.steps, n=10, method="inclusive")[-1] if len(self.steps) > 1 else self.steps[0]

    @property
    def per_hour(self) -> float:
        """Steps per hour, by the mean."""
        return 3600 / fmean(self.steps)


def outcome(tallies: Sequence[Tally], servers: int, warming: int) -> Outcome:
    """Of the steps after the first `warming`; `tallies[0]` is that of the beginning."""
    first, last = tallies[warming], tallies[-1]
    seconds, count = last.now - first.now, len(tallies) - 1 - warming
    stale = last.staleness - first.staleness
    prefilled = last.prefilled - first.prefilled
    return Outcome(
        steps=tuple(
            after.now - before.now for before, after in zip(tallies[warming:], tallies[warming + 1 :], strict=False)
        ),
        policy=(last.server_seconds - first.server_seconds) / seconds / servers,
        learner=(last.learner_seconds - first.learner_seconds) / seconds,
        tokens_per_second=(last.sampled - first.sampled) / seconds,
        cached=1 - prefilled / max(1, last.prompted - first.prompted),
        prefilled=(prefilled + last.recomputed - first.recomputed) / count,
        signal=3600 * (last.signal - first.signal) / seconds,
        dropped=(last.dropped - first.dropped) / count,
        redrawn=(last.redrawn - first.redrawn) / count,
        staleness={lag: stale[lag] / stale.total() for lag in sorted(stale)},
    )
