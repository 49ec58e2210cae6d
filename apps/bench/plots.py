"""The bench in pictures: EM by set and strategy, and what a point of EM costs in searches and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from research.atomic_io import atomic_write
from research.bench.figures import ALL_KINDS, BenchFigures
from research.bench.runs import BenchRun
from research.questions.benchmarks import benchmark_named

_MARKERS = "os^Dv*PX"


def plot_bench(runs: Sequence[BenchRun], figures: Sequence[Mapping[str, BenchFigures]], path: Path) -> None:
    """Columns with intervals for each set and strategy on the left; EM against searches and tokens on the right."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # names of kinds are not formulas
    from matplotlib import pyplot as plt

    # 1. What is shown, and the colors of the strategies.
    found = [(run, f[ALL_KINDS]) for run, f in zip(runs, figures, strict=True) if ALL_KINDS in f]
    sets, strategies = (list(dict.fromkeys(getattr(run, part) for run, _ in found)) for part in ("set", "strategy"))
    labels = list(dict.fromkeys(run.label for run, _ in found))
    colours = dict(zip(strategies, [f"C{number}" for number in range(10)], strict=False))
    figure, (columns, searches, tokens) = plt.subplots(
        1, 3, figsize=(16, 4.6), layout="constrained", width_ratios=(1.6, 1, 1)
    )
    # 2. Left: one column per run and strategy, with its interval.
    bars = [(label, strategy) for label in labels for strategy in strategies]
    width = 0.86 / max(1, len(bars))
    columned, groups = _columns(runs, figures)
    for group, run, f in columned:
        place = groups.index(group) + (bars.index((run.label, run.strategy)) - (len(bars) - 1) / 2) * width
        em = 100 * f.em.mean
        columns.bar(
            place,
            em,
            width,
            color=colours[run.strategy],
            hatch="" if run.label == labels[0] else "//",
            edgecolor="white",
            yerr=[[em - 100 * f.em.low], [100 * f.em.high - em]],
            error_kw={"linewidth": 0.9, "ecolor": "0.3"},
        )
    # 3. Right: EM against searches and tokens, one marker per run, larger for later sets.
    for run, f in found:
        em = 100 * f.em.mean
        marker = _MARKERS[labels.index(run.label) % len(_MARKERS)]
        size = 30 + 40 * sets.index(run.set)
        searches.scatter(f.searches, em, size, color=colours[run.strategy], marker=marker, alpha=0.8)
        tokens.scatter(f.read + f.written, em, size, color=colours[run.strategy], marker=marker, alpha=0.8)
    # 4. Axes and legend.
    columns.set_xticks(range(len(groups)), groups)
    columns.tick_params(axis="x", labelsize=8)
    columns.set(ylabel="EM, percent", title="EM, with 95 % intervals")
    searches.set(xlabel="searches per question", ylabel="EM, percent", title="EM against searches")
    tokens.set(xlabel="tokens read and written per question", title="EM against tokens", xscale="log")
    for axis in (columns, searches, tokens):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    keys = [plt.Rectangle((0, 0), 1, 1, color=colours[strategy]) for strategy in strategies]
    names = list(strategies)
    if len(labels) > 1:
        for place, label in enumerate(labels):
            keys.append(plt.Line2D([], [], color="0.3", linestyle="", marker=_MARKERS[place % len(_MARKERS)]))
            names.append(label if not place else f"{label} (hatched)")
    figure.legend(keys, names, loc="outside lower center", ncols=len(names))
    with atomic_write(path) as out:
        figure.savefig(out, format="png", dpi=110)
    plt.close(figure)


def _columns(
    runs: Sequence[BenchRun], figures: Sequence[Mapping[str, BenchFigures]]
) -> tuple[list[tuple[str, BenchRun, BenchFigures]], list[str]]:
    """The groups of columns in the first picture: the sets or, if there is only one set, its kinds of question."""
    one_set = len({run.set for run in runs}) == 1
    found = []
    for run, kinds in zip(runs, figures, strict=True):
        for kind, f in kinds.items():
            if (kind != ALL_KINDS) == (one_set and len(kinds) > 1):
                name = kind.replace("_new_template", "\nnew template").replace("_", "-")
                found.append((name if kind != ALL_KINDS else _title(run.set), run, f))
    return found, list(dict.fromkeys(group for group, _, _ in found))


def _title(name: str) -> str:
    benchmark = benchmark_named(name)
    return benchmark.title if benchmark else name
