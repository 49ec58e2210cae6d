"""`research report`: what one or several directories of the bench hold, as Markdown, plots and a page to read."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.bench.markdown import markdown
from apps.bench.page import write_bench_page
from apps.bench.plots import plot_bench
from research.atomic_io import atomic_write
from research.bench.figures import BenchFigures, figures_by_kind
from research.bench.runs import BenchRun, read_runs
from research.settings import Settings


@dataclass(frozen=True, slots=True)
class Report:
    """The runs that were read, their figures, and the report that was written."""

    runs: Sequence[BenchRun]
    figures: Sequence[Mapping[str, BenchFigures]]
    path: Path


def write_report(directories: Sequence[Path], out: Path, settings: Settings, command: Sequence[str]) -> Report:
    """Write report.md, plots.png and episodes.html into `out`.

    Args:
        directories: of `research bench`; with several, the others are compared with the first.
        settings: for its prices.
        command: the command line that the report names as its source.

    Raises:
        AssetError: a directory holds no run, or a file is corrupt.
        ConfigurationError: two directories have the same name.
    """
    runs = read_runs(directories, settings.bench.judge_model)
    figures = [figures_by_kind(run, settings.bench.prices.get(str(run.conditions["model"]))) for run in runs]
    out.mkdir(parents=True, exist_ok=True)
    plot_bench(runs, figures, out / "plots.png")
    write_bench_page(runs, out / "episodes.html")
    path = out / "report.md"
    with atomic_write(path) as stream:
        stream.write(markdown(runs, figures, shlex.join(command)).encode("utf-8", "replace"))
    return Report(runs, figures, path)
