"""The figures of the bench that a terminal has room for; the report has the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from research.bench.figures import ALL_KINDS, BenchFigures
from research.bench.runs import BenchRun


def show_figures(runs: Sequence[BenchRun], figures: Sequence[Mapping[str, BenchFigures]], console: Console) -> None:
    """Print one table per set, with one row per directory and strategy."""
    several = len({run.label for run in runs}) > 1
    for name in dict.fromkeys(run.set for run in runs):
        table = Table(title=f"{name}, percent")
        if several:
            table.add_column("run", overflow="fold")
        table.add_column("strategy", no_wrap=True)
        for column in ("EM", "±", "F1", "judge", "found", "searches", "n"):
            table.add_column(column, justify="right", no_wrap=True)
        for run, kinds in zip(runs, figures, strict=True):
            if run.set != name or ALL_KINDS not in kinds:
                continue
            found = kinds[ALL_KINDS]
            table.add_row(
                *([escape(run.label)] if several else []),
                run.strategy,
                f"{100 * found.em.mean:.1f}",
                f"{50 * (found.em.high - found.em.low):.1f}",
                f"{100 * found.f1.mean:.1f}",
                "" if found.judge is None else f"{100 * found.judge.mean:.1f}",
                "" if found.recall is None else f"{100 * found.recall:.1f}",
                f"{found.searches:.2f}",
                str(found.em.n),
            )
        console.print(table)
    console.print("±: half the 95 % interval of EM. found: supporting passages that a search found.", style="dim")
