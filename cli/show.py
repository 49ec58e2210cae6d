"""Answers and evaluations, printed in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from research.schemas import AnswerResponse
from services.process.terminal import escape_control_chars

_STYLES = {
    "think": "dim",
    "search": "cyan",
    "open": "cyan",
    "result": "yellow",
    "answer": "bold green",
    "text": "default",
}


def show_answer(answer: AnswerResponse, console: Console) -> None:
    """Print the trace, step by step, and the answer."""
    console.print(f"[bold]question[/] {_inert(answer.question)}", highlight=False)
    for step in answer.trace:
        style = _STYLES[step.kind]
        console.print(f"  [{style}]{step.kind:>7}[/] {_inert(step.text)}", highlight=False)
    console.print(
        f"[bold]answer[/] {_inert(answer.answer or '(none)')}   "
        f"({answer.stop_reason}; {answer.usage.searches} searches, {answer.usage.sampled_tokens} tokens written, "
        f"{answer.seconds.total:.1f} s, weight version {_inert(', '.join(answer.weight_versions))})",
        highlight=False,
    )


def _inert(text: str) -> str:
    return escape(escape_control_chars(text))


def show_evaluations(evaluations: dict[str, Any], console: Console) -> None:
    """Print a table with one row per stage and kind of question."""
    table = Table("stage", "questions", title="held-out questions, greedy")
    for column in ("EM", "F1", "searches", "well formed", "n"):
        table.add_column(column, justify="right")
    for stage, kinds in evaluations.items():
        for kind, f in kinds.items():
            row = (f["em"], f["f1"], f["searches"], f["well_formed"])
            table.add_row(stage, _inert(kind), *(f"{value:.3f}" for value in row), str(f["n"]))
    console.print(table)
