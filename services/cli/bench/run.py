"""`research bench`: strategies against question sets, on running services, into resumable records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from research.bench.judge import Verdicts, judge_all
from research.bench.records import Records, differences, read_conditions
from research.bench.run import ask_all
from research.bench.runs import VERDICTS, read_runs, run_files, shared_conditions
from research.episode import Sampling
from research.errors import ConditionsChangedError, ConfigurationError, ResearchError, ServiceError
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
_REASONS = 3  # that are told
_SPEED_SECONDS = 600  # over which the time left is estimated


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
        ConditionsChangedError: the policy got new weights meanwhile.
    """
    sets = question_sets(settings)
    for each in sets:
        if each.warning:
            console.print(f"[yellow]note:[/] {each.warning}", highlight=False)
    stopped: ResearchError | None = None
    failed: dict[str, str] = {}
    async with subject(settings) as asked:
        planned = await _plan(asked, sets, strategies, out)
        _require_one_measurement(out, planned)
        try:
            failed = await _ask(asked, planned, console)
            if settings.bench.judge_endpoint:
                await _judge(settings, out, console)
        except (ServiceError, ConditionsChangedError) as error:
            stopped = error
    with console.status("intervals, plots and pages"):
        report = write_report([out], out, settings, command)
    show_figures(report.runs, report.figures, console)
    where = escape(str(report.path))
    console.print(f"the report is {where}, beside it plots and every episode", highlight=False, soft_wrap=True)
    if failed:
        console.print(f"[yellow]{len(failed)} questions could not be asked;[/] run it again to ask them. Reasons:")
        for reason in list(dict.fromkeys(failed.values()))[:_REASONS]:
            console.print(f"  {escape(reason)}", highlight=False, soft_wrap=True)
    if stopped:
        raise stopped


def question_sets(settings: Settings) -> list[QuestionSet]:
    """The sets that the settings name.

    Raises:
        AssetError: one is missing or broken.
        ConfigurationError: two would go by one name, or no set has a kind that `bench.per_kind` names.
    """
    sources = settings.bench.questions or [settings.questions.held_out]
    loaded = {source: load_questions(source, "held_out", settings.paths.data) for source in sources}
    counts = settings.bench.per_kind
    kinds = {question.stratum for questions in loaded.values() for question in questions}
    if isinstance(counts, Mapping) and (unknown := sorted(set(counts) - kinds)):
        raise ConfigurationError(
            f"bench.per_kind: no question is of kind {', '.join(unknown)}; there are: {', '.join(sorted(kinds))}"
        )
    sets = []
    for source, questions in loaded.items():
        benchmark = benchmark_of(source, questions)
        chosen = _some_of_each_kind(questions, counts)
        warning = benchmark.warning(len(chosen)) if benchmark else None
        sets.append(QuestionSet(set_name(source, benchmark), chosen, warning))
    names = [each.name for each in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"bench.questions: two sets would be called {', '.join(twice)}; rename a file")
    return sets


def _some_of_each_kind(questions: list[Question], counts: int | Mapping[str, int] | None) -> list[Question]:
    if counts is None:
        return questions
    if isinstance(counts, Mapping):
        present = {question.stratum for question in questions}
        counts = {kind: count for kind, count in counts.items() if kind in present}
    return first_of_each_kind(questions, counts)


@dataclass(frozen=True, slots=True)
class Planned:
    """One file of records that is to be filled."""

    strategy: Name
    questions: QuestionSet
    conditions: Mapping[str, Any]
    path: Path


async def _plan(asked: Subject, sets: Sequence[QuestionSet], strategies: Sequence[Name], out: Path) -> list[Planned]:
    planned = []
    for each in sets:
        about = {"set": each.name, "questions": digest_of(each.questions), "asked": len(each.questions)}
        for name in strategies:
            conditions = {**await asked.conditions(name), **about}
            planned.append(Planned(name, each, conditions, out / each.name / f"{name}.jsonl"))
    return planned


def _require_one_measurement(out: Path, planned: Sequence[Planned]) -> None:
    """Refuse, before anything is asked, a directory with runs of another model, index or whatever else differs."""
    asked = {each.questions.name: each.conditions for each in planned}
    for path in run_files(out):
        there = read_conditions(path) or planned[0].conditions
        faults = differences(shared_conditions(there), json.loads(json.dumps(shared_conditions(planned[0].conditions))))
        if (here := asked.get(path.parent.name)) and there.get("questions") != here["questions"]:
            faults.append("questions: they are others")
        if faults:
            raise ConfigurationError(
                f"{path} was begun under other conditions: {'; '.join(faults)}. A directory is one measurement; name "
                "another one (--out), or move this one away"
            )


async def _ask(asked: Subject, planned: Sequence[Planned], console: Console) -> dict[str, str]:
    """The questions that could not be asked, each with the reason."""
    failed: dict[str, str] = {}
    with ExitStack() as opened:
        files = [opened.enter_context(Records(each.path, each.conditions)) for each in planned]
        bar = opened.enter_context(_progress(console))
        done = sum(len(records.done) for records in files)
        total = sum(len(each.questions.questions) for each in planned)
        everything = bar.add_task("everything", total=total, completed=done)
        for each, records in zip(planned, files, strict=True):
            name, questions = f"{each.questions.name}: {each.strategy}", each.questions.questions
            task = bar.add_task(name, total=len(questions), completed=len(records.done))
            reasons = await ask_all(
                asked.strategy(each.strategy),
                questions,
                records,
                sampling=GREEDY,
                concurrency=asked.settings.policy.max_sequences,
                version=asked.version,
                on_answer=partial(_advance, bar, task, everything),
            )
            failed |= {f"{name}: {question}": reason for question, reason in reasons.items()}
    return failed


async def _judge(settings: Settings, out: Path, console: Console) -> None:
    bench, limits = settings.bench, settings.episode
    key = environment_secret(JUDGE_KEY_VARIABLE)
    records = [record for run in read_runs([out], bench.judge_model) for record in run.records]
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
        speed_estimate_period=_SPEED_SECONDS,
    )


def _advance(bar: Progress, *tasks: int) -> None:
    for task in tasks:
        bar.advance(task)  # type: ignore[arg-type]
