"""Shows the episodes of a run: in the terminal, or as one HTML file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from apps.inspect.filters import Filters
from apps.inspect.page import write_page
from apps.inspect.read import RunEpisodes, find_run
from apps.inspect.terminal import show_episode, show_tokens
from apps.inspect.tokens import load_token_texts
from research.settings import Settings

_IN_TERMINAL, _IN_PAGE = 10, 2000


def inspect_run(
    settings: Settings,
    run_name: str,
    filters: Filters,
    *,
    limit: int | None,
    tokens: bool,
    html: Path | None,
    console: Console,
) -> None:
    """Show the newest episodes that match, `limit` at most (None: 10 in the terminal, 2,000 in a page).

    Raises AssetError or ConfigurationError if there is no such run, step or evaluation; the message says what there is.
    """
    run = find_run(run_name, settings.paths.runs)
    if html is not None:
        limit = limit or _IN_PAGE
        shown, more = write_page(run, filters, limit, load_token_texts(run, settings.paths.data), html)
        console.print(
            f"{escape(str(html))}: {shown} episodes, {html.stat().st_size / 1e6:.1f} MB",
            highlight=False,
            soft_wrap=True,
        )
    else:
        shown, more = _print(run, filters, limit or _IN_TERMINAL, settings.paths.data, tokens, console)
    for problem in dict.fromkeys(run.problems):
        console.print(f"[yellow]note:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if shown == 0:
        console.print(f"no episode matches; the run has {_what_there_is(run)}", highlight=False, soft_wrap=True)
    elif more:
        console.print(f"{shown} shown, more match: add filters, or raise --limit", highlight=False, soft_wrap=True)


def _print(
    run: RunEpisodes, filters: Filters, limit: int, data: Path, tokens: bool, console: Console
) -> tuple[int, bool]:
    """Print episodes; returns how many were shown, and whether more match."""
    texts = load_token_texts(run, data) if tokens else None
    fitting = filters.select(run)
    count = 0
    for episode in islice(fitting, limit):
        count += 1
        show_episode(episode, console)
        if tokens:
            show_tokens(episode, texts, console)
    if tokens and texts is None:
        console.print("[yellow]note:[/] the tokenizer of the run is not on this disk, so tokens show as ids")
    return count, next(fitting, None) is not None


def _what_there_is(run: RunEpisodes) -> str:
    steps = [source.step for source in run.sources() if source.step is not None]
    evaluations = [source.evaluation for source in run.sources() if source.evaluation is not None]
    parts = [f"steps {steps[0]} to {steps[-1]}"] if steps else []
    return " and ".join(parts + ([f"evaluations {', '.join(evaluations)}"] if evaluations else []))
