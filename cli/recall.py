"""`research index --evaluate`: recall as a table."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from research.settings import Settings
from services.retriever.build.recall import DEPTHS, evaluate_index


def print_recall(settings: Settings, questions: Path | None, console: Console) -> None:
    """Measure and print; raises what `evaluate_index` raises."""
    rows = evaluate_index(settings, questions)
    if not rows:
        console.print(
            "the index is exact, or keeps no vectors to compare it with; pass --questions FILE to measure it against "
            "gold passages"
        )
        return
    table = Table("ranking by", "against", "queries", *(f"recall@{depth}" for depth in DEPTHS))
    for row in rows:
        table.add_row(row.measured, row.against, str(row.queries), *(f"{share:.3f}" for share in row.at))
    console.print(table)
    if missing_titles := max(row.missing_titles for row in rows):
        console.print(
            f"[yellow]note:[/] {missing_titles} queries have a gold passage that is not in the index; "
            "it counts as not found",
            highlight=False,
        )
