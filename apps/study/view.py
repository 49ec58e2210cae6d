"""The terminal's view of a study: the state of each run, its rewards, and how long the rest will take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from apps.study.plan import START, PlannedRun, StudyPlan
from services.process.terminal import escape_control_chars
from services.trainer.entry import Entry, grpo_entries
from services.trainer.evaluation.evaluator import SAMPLED
from services.trainer.status import RunStatus
from services.trainer.telemetry.console import lines_of

_REFRESH_SECONDS = 0.5
_SHOWN_REWARDS = 24
_BARS = "▁▂▃▄▅▆▇█"


class StudyView:
    """Shows one run after the other, within the whole."""

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan

    async def follow(self, status: RunStatus, console: Console) -> None:
        """Follow a run until cancelled. Without a terminal only its lines are printed."""

        def show(line: str) -> None:
            console.print(escape_control_chars(line), highlight=False, markup=False, soft_wrap=True)

        status.listeners.append(show)
        if not console.is_terminal:
            await lines_of(status, show)
        phase = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        task, shown = phase.add_task("", total=None), None
        with Live(console=console, transient=True, auto_refresh=False) as live:
            while True:
                if (status.phase, status.step) != shown:
                    shown = (status.phase, status.step)
                    phase.reset(task, description=f"{status.run}: step {status.step} {status.phase}")
                phase.update(task, completed=status.done, total=status.total or None)
                live.update(Group(self._table(status), phase), refresh=True)
                await asyncio.sleep(_REFRESH_SECONDS)

    def _table(self, status: RunStatus) -> Table:
        table = Table("run", "step", "reward, step by step", "held-out EM: one-hop", "two-hop", "time left")
        for run in self._plan.runs:
            table.add_row(*self._row(run, status))
        return table

    def _row(self, run: PlannedRun, status: RunStatus) -> tuple[str, ...]:
        record = self._plan.record(run)
        metrics, steps = record.metrics(), 0 if run.arm == START else self._plan.settings.grpo.steps
        rewards = [entry["reward"] for entry in grpo_entries(metrics)]
        greedy = [figures for name, figures in record.evaluations().items() if name != SAMPLED]
        last = greedy[-1:] or [{}]
        return (
            run.name,
            f"{len(metrics)}/{steps}" if steps else "–",
            f"{sparkline(rewards)} {rewards[-1]:.2f}" if rewards else "",
            *(f"{last[0][kind]['em']:.3f}" if kind in last[0] else "" for kind in ("one_hop", "two_hop")),
            "finished" if self._plan.is_finished(run) else time_left(metrics, steps) if run.name == status.run else "",
        )


def sparkline(values: Sequence[float]) -> str:
    """The last values as bars between 0 and 1."""
    return "".join(_BARS[min(int(max(v, 0.0) * len(_BARS)), len(_BARS) - 1)] for v in values[-_SHOWN_REWARDS:])


def time_left(metrics: Sequence[Entry], steps: int) -> str:
    """Estimated from the mean duration of the last steps; evaluations are not included."""
    recent = [sum(entry["seconds"].values()) for entry in metrics[-5:]]
    if not recent:
        return "…"
    left, seconds = divmod(round(sum(recent) / len(recent) * (steps - len(metrics))), 60)
    return f"{left // 60:02}:{left % 60:02}:{seconds:02}"
