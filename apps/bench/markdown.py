"""The report of the bench in Markdown: our results with the paper's, every figure, and what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from research.bench.figures import ALL_KINDS, BenchFigures, answered_by_both, paired_difference
from research.bench.paper import PAPER
from research.bench.records import differences
from research.bench.runs import BenchRun, shared_conditions, what_differs
from research.markdown import escape_cell, markdown_table
from research.questions.benchmarks import BENCHMARKS, benchmark_named
from research.scoring.statistics import Estimate
from research.strategies import RESEARCH


def markdown(runs: Sequence[BenchRun], figures: Sequence[Mapping[str, BenchFigures]], command: str) -> str:
    """The whole report; `figures` are those of each run, and `command` made it."""
    sets = list(dict.fromkeys(run.set for run in runs))
    sampling = ", ".join(sorted({escape_cell(str(run.conditions.get("sampling", "greedy"))) for run in runs}))
    paragraphs = [
        "# Bench",
        f"Made by `{command}`. In percent, sampled {sampling}; 95 % intervals by a bootstrap over entities.",
    ]
    paragraphs += _what_differs(runs)
    paragraphs += _notes(runs, figures)
    paragraphs += ["## Results", _overview(runs, figures, sets), "![EM by set and strategy](plots.png)"]
    for name in sets:
        paragraphs += [f"## {_title(name)}", *_by_kind(runs, figures, name), _details(runs, figures, name)]
    paragraphs += _comparisons(runs, sets)
    paragraphs += ["## What was run", *_conditions(runs)]
    return "\n\n".join(paragraphs) + "\n"


def _overview(runs: Sequence[BenchRun], figures: Sequence[Mapping[str, BenchFigures]], sets: Sequence[str]) -> str:
    """The paper's layout: one row per model and strategy, one column per set; the paper's own rows below."""
    judged = any(run.verdicts for run in runs)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for run, found in zip(runs, figures, strict=True):
        if ALL_KINDS in found:
            cells.setdefault((run.label, run.strategy), {})[run.set] = _em_and_judge(found[ALL_KINDS])
    rows = [[label, strategy, *(own.get(name, "") for name in sets)] for (label, strategy), own in cells.items()]
    papers = [name for name in sets if any(name == benchmark.name for benchmark in BENCHMARKS)]
    for paper, theirs in PAPER.items() if papers else ():
        shown = ("{:.1f} / {:.1f}".format(*theirs[name]) if name in papers else "" for name in sets)
        rows.append(["*the paper*", paper, *shown])
    what = "EM / judge" if judged or papers else "EM"
    return markdown_table(["run", "strategy", *(f"{_title(name)}, {what}" for name in sets)], rows)


def _by_kind(runs: Sequence[BenchRun], figures: Sequence[Mapping[str, BenchFigures]], name: str) -> Iterator[str]:
    """EM per kind of question, if there are several."""
    chosen = [(run, found) for run, found in zip(runs, figures, strict=True) if run.set == name]
    kinds = sorted({kind for _, found in chosen for kind in found if kind != ALL_KINDS}, key=_plain_kinds_first)
    if kinds:
        rows = [
            [run.label, run.strategy, *(_percent(found[kind].em.mean) if kind in found else "" for kind in kinds)]
            for run, found in chosen
        ]
        yield "EM by kind of question:"
        yield markdown_table(["run", "strategy", *map(_kind, kinds)], rows)
        yield "Every figure:"


def _details(runs: Sequence[BenchRun], figures: Sequence[Mapping[str, BenchFigures]], name: str) -> str:
    chosen = [(run, kind, f) for run, found in zip(runs, figures, strict=True) for kind, f in found.items()]
    chosen = [(run, kind, f) for run, kind, f in chosen if run.set == name]
    columns: dict[str, list[str]] = {
        "run": [run.label for run, _, _ in chosen],
        "strategy": [run.strategy for run, _, _ in chosen],
        "questions": [_kind(kind) for _, kind, _ in chosen],
        "n": [str(f.em.n) for _, _, f in chosen],
        "EM [95 %]": [_interval(f.em) for _, _, f in chosen],
        "F1": [_percent(f.f1.mean) for _, _, f in chosen],
        "cover-EM": [_percent(f.cover_em.mean) for _, _, f in chosen],
        "judge [95 %]": ["" if f.judge is None else _interval(f.judge) for _, _, f in chosen],
        "found": ["" if f.recall is None else _percent(f.recall) for _, _, f in chosen],
        "searches": [f"{f.searches:.2f}" for _, _, f in chosen],
        "read": [f"{f.read:.0f}" for _, _, f in chosen],
        "written": [f"{f.written:.0f}" for _, _, f in chosen],
        "seconds": [f"{f.seconds:.1f}" for _, _, f in chosen],
        "USD for 1,000": ["" if f.cost is None else f"{1000 * f.cost:.2f}" for _, _, f in chosen],
        "no answer": [str(f.unanswered) for _, _, f in chosen],
        "cut": [str(f.truncated) for _, _, f in chosen],
    }
    kept = {column: cells for column, cells in columns.items() if any(cells)}
    legend = (
        "found: supporting passages (by title) that a search of the question found. read, written: tokens per "
        "question; what each request sends again counts again. seconds: from question to answer, with as many at once "
        "as the policy accepts. cut: ended by a limit."
    )
    return markdown_table(list(kept), zip(*kept.values(), strict=True)) + "\n\n" + legend


def _comparisons(runs: Sequence[BenchRun], sets: Sequence[str]) -> Iterator[str]:
    """Compare with the first directory, and ReSearch with the other strategies of its own directory."""
    rows = []
    for run in runs:
        for other in runs:
            if run.set != other.set or not _comparable(run, other):
                continue
            across = run.strategy == other.strategy and other.label == runs[0].label != run.label
            within = run.label == other.label and run.strategy == RESEARCH != other.strategy
            if across or within:
                names = [f"{each.label}: {each.strategy}" for each in (run, other)]
                found = [paired_difference(run.records, other.records, metric) for metric in ("em", "f1")]
                rows.append([_title(run.set), *names, *map(_interval, found), str(found[0].n)])
    if rows:
        yield "## Paired differences"
        yield markdown_table(["set", "this", "minus this", "EM [95 %]", "F1 [95 %]", "questions"], rows)


def _comparable(run: BenchRun, other: BenchRun) -> bool:
    return bool(answered_by_both(run.records, other.records))


def _what_differs(runs: Sequence[BenchRun]) -> Iterator[str]:
    """Conditions in which the runs differ, apart from those that are compared."""
    told: dict[str, list[str]] = {}
    for label in dict.fromkeys(run.label for run in runs):
        first, *others = [run for run in runs if run.label == label]
        for run in others:
            for fault in differences(shared_conditions(first.conditions), shared_conditions(run.conditions)):
                who = f"{label}: {first.set}, {first.strategy} and {run.set}, {run.strategy}"
                told.setdefault(f"{who} differ in {fault}", []).append("")
    for name, strategy in dict.fromkeys((run.set, run.strategy) for run in runs):
        same = [run for run in runs if (run.set, run.strategy) == (name, strategy)]
        for label, faults in what_differs(same).items() if len(same) > 1 else ():
            for fault in faults:
                told.setdefault(f"{same[0].label} and {label} differ in {fault}", []).append(f"{name}: {strategy}")
    if told:
        everywhere = len(dict.fromkeys((run.set, run.strategy) for run in runs))
        yield "**These runs differ:**"
        yield "\n".join(
            f"- {escape_cell(fault)}" + ("" if len(where) == everywhere or where == [""] else f" ({', '.join(where)})")
            for fault, where in told.items()
        )


def _notes(runs: Sequence[BenchRun], figures: Sequence[Mapping[str, BenchFigures]]) -> Iterator[str]:
    notes = []
    for run in runs:
        benchmark = benchmark_named(run.set)
        if benchmark and (warning := benchmark.warning(int(run.conditions.get("asked", len(run.records))))):
            notes.append(warning)
        if run.missing:
            notes.append(
                f"{run.label}, {run.set}: {run.strategy}: {run.missing} of {run.conditions['asked']} questions are not "
                "answered yet; no figure counts them"
            )
    for run, found in zip(runs, figures, strict=True):
        if ALL_KINDS in found and (unjudged := found[ALL_KINDS].unjudged):
            notes.append(
                f"{run.label}, {run.set}: {run.strategy}: {unjudged} of {found[ALL_KINDS].em.n} answers have no "
                "verdict; they count as wrong"
            )
    if notes:
        yield "\n".join(f"- **Note:** {note}." for note in dict.fromkeys(notes))


def _conditions(runs: Sequence[BenchRun]) -> Iterator[str]:
    for label in dict.fromkeys(run.label for run in runs):
        own = [run for run in runs if run.label == label]
        names = list(dict.fromkeys(name for run in own for name in run.conditions))
        shared = [name for name in names if len({json.dumps(run.conditions.get(name)) for run in own}) == 1]
        told = {name: own[0].conditions.get(name) for name in shared}
        if own[0].judge:
            told["judge"] = own[0].judge
        yield f"**{label}**"
        yield markdown_table(["condition", "value"], [[name, f"`{json.dumps(value)}`"] for name, value in told.items()])
        apart = [name for name in names if name not in shared and name not in ("strategy", "set")]
        yield markdown_table(
            ["set", "strategy", *apart],
            [[run.set, run.strategy, *(_short(run.conditions.get(name)) for name in apart)] for run in own],
        )


def _title(name: str) -> str:
    benchmark = benchmark_named(name)
    return benchmark.title if benchmark else name


def _kind(kind: str) -> str:
    return kind.replace("_new_template", ", new template").replace("_", "-")


def _plain_kinds_first(kind: str) -> tuple[bool, str]:
    return "_new_template" in kind, kind


def _em_and_judge(found: BenchFigures) -> str:
    em = _percent(found.em.mean)
    return em if found.judge is None else f"{em} / {_percent(found.judge.mean)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(found: Estimate) -> str:
    return f"{_percent(found.mean)} [{_percent(found.low)}, {_percent(found.high)}]"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text[:16]}…`" if len(text) > 24 else f"`{text}`"
