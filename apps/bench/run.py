"""`research bench`: runs strategies on question sets, on running services, into resumable records."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from apps.bench.plan import PlannedMeasurement, check_same_conditions, plan
from apps.bench.report import write_report
from apps.bench.sets import question_sets
from apps.bench.target import Target, target_of
from apps.bench.terminal import show_figures
from research.bench.judge import JUDGE_KEY_VARIABLE, Verdicts, judge_all
from research.bench.records import Records
from research.bench.run import ask_all
from research.bench.runs import VERDICTS, read_runs
from research.episode.agent import GREEDY
from research.errors import ConditionsChangedError, ResearchError, ServiceError, ServiceRefusalError
from research.schemas import StrategyName
from research.settings import Settings
from research.strategies.openai_chat import OpenAIChat
from services.process.progress import Lines
from services.web.auth import environment_secret

_REASONS = 3  # that are shown
_SPEED_SECONDS = 600  # over which the time left is estimated


async def run_bench(
    settings: Settings, strategies: Sequence[StrategyName], out: Path, command: Sequence[str], console: Console
) -> None:
    """Ask every set with each strategy, have the answers judged if a judge is named, and report.

    Questions that `out` has answers to are not asked again. The report names `command` as its source.

    Raises:
        ConfigurationError: `out` holds answers under other conditions, or the prompt is not the checkpoint's.
        ServiceError: a service does not answer, or some questions could not be asked (the report is written first).
        ConditionsChangedError: the policy received new weights meanwhile.
    """
    sets = question_sets(settings)
    for each in sets:
        if each.warning:
            console.print(f"[yellow]note:[/] {each.warning}", highlight=False)
    stopped: ResearchError | None = None
    failed: dict[str, str] = {}
    async with target_of(settings) as asked:
        planned = await plan(asked, sets, strategies, out)
        check_same_conditions(out, planned)
        try:
            failed = await _ask(asked, planned, console)
            if settings.bench.judge_endpoint:
                await _judge(settings, out, console)
        except (ServiceError, ConditionsChangedError) as error:
            stopped = error
    with console.status("computing intervals, plots and pages"):
        report = write_report([out], out, settings, command)
    show_figures(report.runs, report.figures, console)
    where = escape(str(report.path))
    console.print(f"the report is {where}; plots and every episode are beside it", highlight=False, soft_wrap=True)
    if stopped:
        raise stopped
    if failed:
        reasons = "\n  ".join(list(dict.fromkeys(failed.values()))[:_REASONS])
        raise ServiceError(
            f"{len(failed)} questions could not be asked; run the command again to ask them. Reasons:\n  {reasons}"
        )


async def _ask(asked: Target, planned: Sequence[PlannedMeasurement], console: Console) -> dict[str, str]:
    """The questions that could not be asked, each with the reason.

    A strategy that an endpoint cannot serve is skipped; the others continue. Two such failures in a row end the bench.
    """
    failed: dict[str, str] = {}
    former: ServiceError | None = None
    with ExitStack() as opened:
        files = [opened.enter_context(Records(each.path, each.conditions)) for each in planned]
        bar = opened.enter_context(_progress(console))
        done = sum(len(records.done) for records in files)
        total = sum(len(each.questions.questions) for each in planned)
        everything = bar.add_task("everything", total=total, completed=done)
        lines = None if console.is_terminal else Lines("asking", "questions", total=total, done=done)
        for each, records in zip(planned, files, strict=True):
            name, questions = f"{each.questions.name}: {each.strategy}", each.questions.questions
            task = bar.add_task(name, total=len(questions), completed=len(records.done))
            try:
                reasons = await ask_all(
                    asked.strategy(each.strategy),
                    questions,
                    records,
                    sampling=GREEDY,
                    concurrency=asked.settings.policy.max_num_seqs,
                    version=asked.version,
                    on_answer=partial(_advance, bar, lines, task, everything),
                )
                former = None
            except ServiceRefusalError:
                raise  # the other strategies would be refused, too
            except ServiceError as error:
                if former:
                    raise
                former = error
                open_ones = (question.id for question in questions if question.id not in records.done)
                reasons = dict.fromkeys(open_ones, f"{name}: {error}")
            failed |= {f"{name}: {question}": reason for question, reason in reasons.items()}
    return failed


async def _judge(settings: Settings, out: Path, console: Console) -> None:
    bench, limits = settings.bench, settings.episode
    key = environment_secret(JUDGE_KEY_VARIABLE)
    runs = read_runs([out], bench.judge_model)
    records = [record for run in runs for record in run.records]
    async with OpenAIChat(
        bench.judge_endpoint, bench.judge_model, timeout=limits.request_timeout, retries=limits.retries, api_key=key
    ) as judge:
        with Verdicts(out / VERDICTS, bench.judge_model) as verdicts, _progress(console) as bar:
            for run in runs:
                verdicts.begin(run.set, run.strategy)
            waiting = sum(verdicts.of(record) is None for record in records)
            task = bar.add_task(f"judge: {bench.judge_model}", total=waiting)
            failed = await judge_all(
                judge,
                verdicts,
                records,
                concurrency=settings.policy.max_num_seqs,
                on_verdict=partial(bar.advance, task),
            )
    if failed:
        console.print(
            f"[yellow]{failed} answers could not be judged;[/] they count as wrong; run it again to judge them",
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
        speed_estimate_period=_SPEED_SECONDS,
    )


def _advance(bar: Progress, lines: Lines | None, *tasks: TaskID) -> None:
    for task in tasks:
        bar.advance(task)
    if lines is not None:
        lines.advance()
