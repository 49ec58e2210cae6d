"""The commands `research corpus`, `research bench` and `research report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.markup import escape

from apps.options import Overrides, Preset, console
from research.config import DEFAULT_PRESET, load_settings
from research.errors import ConfigurationError
from research.schemas import StrategyName
from research.strategies import STRATEGIES
from services.process import stopping


def corpus(
    sources: Annotated[
        list[Path],
        typer.Argument(help="question files with paragraphs (MuSiQue, HotpotQA, 2Wiki), or one dump of Wikipedia"),
    ],
    out: Annotated[Path, typer.Option(help="the JSONL file of passages to write")],
) -> None:
    """Write passages for an index: the paragraphs of question sets, each once, or those of a Wikipedia dump.

    Use it before `research index`, to search exactly the passages that a benchmark comes with. Dumps may be in DPR's
    form (TSV of id, text, title: 100 words per passage) or wiki-18's (JSONL of id, contents), also compressed (.gz);
    `research index` also reads dumps directly.

    Example: `research corpus musique_ans_v1.0_dev.jsonl --out data/corpus/musique.jsonl`
    """
    from apps.bench.corpus import write_corpus

    count = write_corpus(sources, out, console)
    console.print(f"{count:,} passages are in {escape(str(out))}", highlight=False, soft_wrap=True)


def bench(
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help=f"one of {', '.join(get_args(StrategyName))} (may be repeated); default: all"),
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option(help="hotpotqa, 2wikimultihopqa, musique, bamboogle, a file or hub:… (may be repeated)"),
    ] = None,
    out: Annotated[Path, typer.Option(help="directory of the records; run again to continue")] = Path("runs/bench"),
) -> None:
    """Ask a model whole question sets with several strategies, greedily, and write the table of the paper.

    Use it to compare the trained agent with baselines. It needs a running retriever and policy (or `bench.endpoint` and
    `bench.model`: any OpenAI API). docs/bench.md has more.

    - The held-out questions that come with this project, with the current policy:
      `research bench --out runs/bench-now`
    - A benchmark from a file, with two strategies:
      `research bench --questions musique_ans_v1.0_dev.jsonl --strategy naive-rag --strategy research`
    - Have the answers judged, too (the key is RESEARCH_JUDGE_API_KEY in the environment):
      `research bench bench.judge_endpoint=https://host/v1 bench.judge_model=name`
    """
    from apps.bench.run import run_bench

    known: tuple[StrategyName, ...] = tuple(sorted(get_args(StrategyName), key=STRATEGIES.index))
    if unknown := set(strategy or ()) - set(known):
        raise ConfigurationError(f"--strategy: {', '.join(sorted(unknown))} is unknown; choose: {', '.join(known)}")
    names = [name for name in known if not strategy or name in strategy]
    settings = load_settings(preset, overrides)
    if questions:
        settings = settings.model_copy(update={"bench": settings.bench.model_copy(update={"questions": questions})})
    with stopping.keeping(lambda: f"the answers so far are in {out}; the same command continues from there"):
        stopping.run(run_bench(settings, names, out, _command(), console))


def report(
    directories: Annotated[list[Path], typer.Argument(help="of `research bench`; all are compared with the first")],
    out: Annotated[Path, typer.Option(help="directory of the report")],
    preset: Preset = DEFAULT_PRESET,
) -> None:
    """Compare runs of `research bench`: what differs, the paper's table, paired differences, plots, every episode.

    Use it to compare weights, models or indexes that you measured into separate directories.

    Example: `research report runs/bench-before runs/bench-after --out runs/compared`
    """
    from apps.bench.report import write_report
    from apps.bench.terminal import show_figures

    written = write_report(directories, out, load_settings(preset), _command())
    show_figures(written.runs, written.figures, console)
    console.print(f"the report is {escape(str(written.path))}", highlight=False, soft_wrap=True)


def _command() -> list[str]:
    return ["research", *sys.argv[1:]]
