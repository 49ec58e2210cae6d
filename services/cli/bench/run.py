"""`research bench`: strategies against question sets, on running services, into resumable records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from research.bench.judge import Verdicts, judge_all
from research.bench.records import Records
from research.bench.run import ask_all
from research.bench.runs import VERDICTS, read_runs
from research.episode import Sampling
from research.errors import ConfigurationError
from research.questions import Question
from research.questions.benchmarks import benchmark_of, set_name
from research.questions.model import digest_of
from research.questions.sampling import first_of_each_kind
from research.questions.sources import load_questions
from research.schemas import Strategy as Name
from research.settings import Settings
from research.strategies.openai_chat import OpenAIChat
from services.cli.bench.report import write_report
from services.cli.bench.subject import JUDGE_KEY_VARIABLE, Subject, subject
from services.cli.bench.terminal import show_figures
from services.web.auth import environment_secret

GREEDY = Sampling(0.0)


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """What is asked under one name; `warning` says why its figures are not the paper's, if they are not."""

    name: str
    questions: list[Question]
    warning: str | None


async def run_bench(
    settings: Settings, strategies: Sequence[Name], out: Path, command: Sequence[str], console: Console
) -> None:
    """Ask every set by each strategy, have the answers judged if a judge is named, and report.

    What `out` holds already is not asked again. `command` is what the report names as its maker.

    Raises:
        ConfigurationError: `out` holds answers under other conditions, or the prompt is not the checkpoint's.
        ServiceError: a service does not answer.
        WeightsChangedError: the policy got new weights meanwhile.
    """
    sets = question_sets(settings)
    for each in sets:
        if each.warning:
            console.print(f"[yellow]note:[/] {each.warning}", highlight=False)
    async with subject(settings) as asked:
        failed = await _ask(asked, sets, strategies, out, console)
    if settings.bench.judge_endpoint:
        await _judge(settings, out, console)
    with console.status("intervals, plots and pages"):
        report = write_report([out], out, settings, command)
    show_figures(report.runs, report.figures, console)
    console.print(f"the report is {report.path}, beside it plots and every episode", highlight=False, soft_wrap=True)
    if failed:
        console.print(f"[yellow]{failed} questions could not be asked;[/] run it again to ask them", highlight=False)


def question_sets(settings: Settings) -> list[QuestionSet]:
    """The sets that the settings name.

    Raises:
        AssetError: one is missing or broken.
        ConfigurationError: two would go by one name.
    """
    sets = []
    for source in settings.bench.questions or [settings.questions.held_out]:
        questions = load_questions(source, "held_out", settings.paths.data)
        benchmark = benchmark_of(source, questions)
        if settings.bench.per_kind is not None:
            questions = first_of_each_kind(questions, settings.bench.per_kind)
        warning = benchmark.warning(len(questions)) if benchmark else None
        sets.append(QuestionSet(set_name(source, benchmark), questions, warning))
    names = [each.name for each in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"bench.questions: two sets would be called {', '.join(twice)}; rename a file")
    return sets


async def _ask(
    asked: Subject, sets: Sequence[QuestionSet], strategies: Sequence[Name], out: Path, console: Console
) -> int:
    """How many questions could not be asked."""
    failed = 0
    with _progress(console) as bar:
        everything = bar.add_task("everything", total=len(strategies) * sum(len(each.questions) for each in sets))
        for each in sets:
            for name in strategies:
                conditions = {
                    **await asked.conditions(name),
                    "set": each.name,
                    "questions": digest_of(each.questions),
                    "asked": len(each.questions),
                }
                with Records(out / each.name / f"{name}.jsonl", conditions) as records:
                    done = len(records.done)
                    task = bar.add_task(f"{each.name}: {name}", total=len(each.questions), completed=done)
                    bar.advance(everything, done)
                    failed += len(
                        await ask_all(
                            asked.strategy(name),
                            each.questions,
                            records,
                            sampling=GREEDY,
                            concurrency=asked.settings.policy.max_sequences,
                            version=asked.version,
                            on_answer=partial(_advance, bar, task, everything),
                        )
                    )
    return failed


async def _judge(settings: Settings, out: Path, console: Console) -> None:
    bench, limits = settings.bench, settings.episode
    key = environment_secret(JUDGE_KEY_VARIABLE)
    records = [record for run in read_runs([out]) for record in run.records]
    async with OpenAIChat(
        bench.judge_endpoint, bench.judge_model, timeout=limits.request_timeout, retries=limits.retries, api_key=key
    ) as judge:
        with Verdicts(out / VERDICTS, bench.judge_model) as verdicts, _progress(console) as bar:
            waiting = sum(verdicts.of(record) is None for record in records)
            task = bar.add_task(f"judge: {bench.judge_model}", total=waiting)
            failed = await judge_all(
                judge,
                verdicts,
                records,
                concurrency=settings.policy.max_sequences,
                on_verdict=partial(bar.advance, task),
            )
    if failed:
        console.print(
            f"[yellow]{failed} answers could not be judged;[/] they count as wrong and are shown; run it again to ask",
            highlight=False,
        )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _advance(bar: Progress, *tasks: int) -> None:
    for task in tasks:
        bar.advance(task)  # type: ignore[arg-type]
