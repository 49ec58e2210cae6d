"""The tables of outcomes, in Markdown: which promises held, what became of run, requests, episodes and files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from benchmarks.faults.cells import Outcome
from benchmarks.faults.kinds import KINDS, PHASES

_LONGEST = 300


def report(outcomes: Sequence[Outcome]) -> str:
    """Promises by phase, then what happened by fault and service, then every promise that did not hold."""
    together: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        together[outcome.kind, outcome.target].append(outcome)
    rows = [(kind, target) for kind in KINDS for target in kind.targets]
    lines = [
        f"| fault | of | promise: the run | {' | '.join(PHASES)} |",
        f"|---|---|---|{'---|' * len(PHASES)}",
        *(
            f"| {kind.name} | {target} | {kind.promise} | "
            f"{' | '.join(_held([o for o in together[kind.name, target] if o.phase == phase]) for phase in PHASES)} |"
            for kind, target in rows
        ),
        "",
        "| fault | of | injections | the run | requests | episodes retried, lost, twice, left out | files | seconds |",
        "|---|---|---|---|---|---|---|---|",
        *(_details(kind.name, target, own) for kind, target in rows if (own := _done(together[kind.name, target]))),
        "",
    ]
    broken = [f"- {each.cell}: {_short('; '.join(each.broken))}" for each in outcomes if each.broken]
    done = _done(outcomes)
    lines.append(f"{len(done)} injections; every promise held in {len(done) - len(broken)} of them.")
    return "\n".join([*lines, *(["", "What did not hold:", "", *broken] if broken else [])])


def _done(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if not each.declined]


def _held(own: Sequence[Outcome]) -> str:
    if not (done := _done(own)):
        return own[0].declined if own else "not run"
    held = sum(not each.broken for each in done)
    if held == len(done):
        return "held" if held == 1 else f"held, {held} times"
    return "broken" if len(done) == 1 else f"held {held} of {len(done)} times"


def _details(kind: str, target: str, own: Sequence[Outcome]) -> str:
    requests: Counter[str] = Counter()
    for each in own:
        requests.update(each.requests)
    runs = Counter(each.run.partition(" (")[0] or "not followed" for each in own)
    seconds = [each.seconds for each in own if each.seconds]
    episodes = (str(sum(getattr(each, name) for each in own)) for name in ("retried", "lost", "twice", "left_out"))
    cells = [
        kind,
        target,
        str(len(own)),
        ", ".join(what if count == len(own) else f"{what} ({count} times)" for what, count in runs.items()),
        ", ".join(f"{count} {what}" for what, count in sorted(requests.items())) or "none changed by the proxy",
        ", ".join(episodes),
        "; ".join(sorted({fault for each in own for fault in each.wrong_files})) or "whole",
        f"{min(seconds):.0f} to {max(seconds):.0f}" if seconds else "",
    ]
    return f"| {' | '.join(each.replace('|', '/') for each in cells)} |"


def _short(text: str) -> str:
    text = text.replace("\n", " ")
    return text if len(text) < _LONGEST else text[:_LONGEST] + "…"
