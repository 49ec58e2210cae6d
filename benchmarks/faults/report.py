"""The table of outcomes, in Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from benchmarks.faults.cells import Outcome
from benchmarks.faults.kinds import KINDS, PHASES


def report(outcomes: Sequence[Outcome]) -> str:
    """A line for each fault, service and phase; several injections are added up."""
    together: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        together[outcome.kind, outcome.target, outcome.phase].append(outcome)
    lines = [
        "| fault | of | phase | injections | the run | requests | episodes: sampled again after a fault, lost, twice, "
        "left out | files | seconds to the end of the next step | promises |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        for target in kind.targets:
            found = ((phase, together.get((kind.name, target, phase))) for phase in PHASES)
            lines += [_line(kind.name, target, phase, own) for phase, own in found if own]
    held = sum(not each.broken for each in outcomes if not each.declined)
    done = sum(not each.declined for each in outcomes)
    lines += ["", f"{done} injections into {len(together)} cells; every promise held in {held} of them."]
    return "\n".join(lines)


def _line(kind: str, target: str, phase: str, own: Sequence[Outcome]) -> str:
    begin = f"| {kind} | {target} | {phase} | "
    if declined := own[0].declined:
        return f"{begin}0 | not run: {declined} | | | | | |"
    requests: Counter[str] = Counter()
    for each in own:
        requests.update(each.requests)
    runs = Counter(each.run.partition(" (")[0] or "not followed" for each in own)
    seconds = [each.seconds for each in own]
    span = f"{min(seconds):.0f}" if len(own) == 1 else f"{min(seconds):.0f} to {max(seconds):.0f}"
    episodes = "{}, {}, {}, {}".format(
        *(sum(getattr(each, name) for each in own) for name in ("retried", "lost", "twice", "left_out"))
    )
    wrong = sorted({fault for each in own for fault in each.wrong_files})
    broken = Counter(fault for each in own for fault in each.broken)
    cells = [
        str(len(own)),
        ", ".join(_times(what, count) for what, count in runs.items()),
        ", ".join(f"{count} {what}" for what, count in sorted(requests.items())) or "all answered",
        episodes,
        "; ".join(wrong) or "whole",
        span,
        "held" if not broken else "; ".join(_times(_short(what), count) for what, count in broken.items()),
    ]
    return begin + " | ".join(each.replace("|", "/") for each in cells) + " |"


def _times(what: str, count: int) -> str:
    return what if count == 1 else f"{what} ({count} times)"


def _short(text: str) -> str:
    return text if len(text) < 160 else text[:157] + "…"
