"""Prints episodes in the terminal."""

from __future__ import annotations

import re

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from apps.inspect.read import InspectedEpisode
from apps.inspect.tokens import TokenTexts
from research.episode.search_analysis import SearchFact, served_all
from research.episode.trace import trace_of
from services.process.terminal import escape_control_chars

_STYLES = {"think": "italic", "search": "bold cyan", "open": "bold cyan", "result": "dim", "answer": "bold", "text": ""}
_OUTCOME_STYLES = {"exact": "green", "partial": "yellow", "wrong": "red", "format": "magenta"}
_LABEL_WIDTH = 10


def show_episode(shown: InspectedEpisode, console: Console) -> None:
    """Print the source, the question, the steps with their authors, and the reward."""
    place = [shown.source.name]
    if shown.group is not None and shown.training is not None:
        place.append(f"group {shown.group}, {shown.position + 1} of {len(shown.rewards)}")
    else:
        place.append(f"question {shown.position + 1}")
    style = _OUTCOME_STYLES[shown.outcome]
    console.print(Rule(Text(escape_control_chars(" · ".join([*place, shown.kind]))), align="left", style=style))
    _line(console, "question", Text(escape_control_chars(shown.question.text), style="bold"))
    _line(console, "gold", Text(escape_control_chars(" | ".join(shown.question.answers))))
    console.print()
    _steps(shown, console)
    console.print()
    _line(console, "answer", Text(escape_control_chars(shown.episode.answer or "(none)"), style=f"bold {style}"))
    parts = f"EM {shown.score.em:.0f}, F1 {shown.score.f1:.2f}, {'badly' if shown.fault else 'well'} formed"
    _line(console, "reward", Text(f"{shown.score.reward:.2f}: {shown.reward_in_words}   ({parts})", style=style))
    if shown.training_in_words is not None:
        _line(console, "advantage", Text(shown.training_in_words))
    _line(console, "episode", Text(_facts(shown)))
    console.print()


def show_tokens(shown: InspectedEpisode, texts: TokenTexts | None, console: Console) -> None:
    """Print a table of the tokens after the prompt: text (or id), mask, log-probability and weight version."""
    table = Table("#", "token", "mask", "log-prob", "version", box=None, padding=(0, 2, 0, 0))
    for column in (0, 2, 3, 4):
        table.columns[column].justify = "right"
    episode = shown.episode
    streams = zip(episode.token_ids, episode.sampled, episode.logprobs, episode.versions, strict=True)
    for number, (token, sampled, logprob, version) in enumerate(streams):
        text = Text(repr(texts.text(token)) if texts else f"#{token}")
        written = (f"{logprob:.4f}", version) if sampled else ("", "")
        table.add_row(str(number), text, str(int(sampled)), *written, style="" if sampled else "dim")
    console.print(table)
    console.print()


def _steps(shown: InspectedEpisode, console: Console) -> None:
    results = iter(shown.facts)
    for step in trace_of(shown.episode):
        text = Text(escape_control_chars(step.text), style=_STYLES[step.kind])
        if step.kind != "result":
            _line(console, step.kind, text)
            continue
        fact = next(results)
        unseen = shown.last_result_unseen and fact is shown.facts[-1]
        for answer in fact.found:
            text.highlight_regex(rf"(?i)(?<!\w){re.escape(answer)}(?!\w)", "not dim bold green")
        _line(console, "retriever", text, bar="┊ ")
        _line(console, "", Text(_verdict(fact, unseen), style="green" if fact.found else "yellow"), bar="┊ ")


def _verdict(fact: SearchFact, unseen: bool) -> str:
    text = f"→ found {', '.join(map(escape_control_chars, fact.found))}" if fact.found else "→ found no new answer"
    if fact.corrects:
        text += "; this query corrected the one before"
    return text + "; the model never saw it, because the context was full" if unseen else text


def _facts(shown: InspectedEpisode) -> str:
    episode = shown.episode
    searches = f"{episode.searches} search{'' if episode.searches == 1 else 'es'}"
    if shown.corrected:
        searches += f" ({shown.corrected} corrected quer{'y' if shown.corrected == 1 else 'ies'})"
    if (served := served_all(episode, shown.question)) is not None:
        searches += f" · {'all' if served else 'not all'} supporting passages found"
    read = len(episode.token_ids) - episode.sampled_tokens
    versions = ", ".join(episode.weight_versions) or "unknown"
    return (
        f"{episode.stop_reason} · {searches} · {episode.sampled_tokens} tokens written, {read} read · "
        f"weight version {versions}" + (f" · {shown.branch_in_words}" if shown.branch_in_words else "")
    )


def _line(console: Console, label: str, text: Text, bar: str = "") -> None:
    """Print a label and the wrapped text beside it; `bar` precedes each line that the model did not write."""
    width = max(20, console.width - _LABEL_WIDTH - len(bar))
    for number, line in enumerate(text.wrap(console, width)):
        head = Text(f"{label if number == 0 else '':<{_LABEL_WIDTH}}", style="dim")
        console.print(head + Text(bar, style="yellow") + line, highlight=False)
