"""`research demo`: every stage in one command."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from builtin.prepare import KEPT, prepare
from cli.ask import ask_policy
from cli.demo_plan import plan
from cli.show import show_answer, show_evaluations
from research.questions.sampling import first_of_each_kind
from research.questions.sources import load_questions
from research.settings import Settings
from services.process import stopping
from services.system.launcher import require_startable, running
from services.trainer.main import kept, train
from services.trainer.run_dir.lock import empty
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.run_dir.size import with_written_size


def run_demo(settings: Settings, preset: str, arguments: Sequence[str], console: Console) -> None:
    """Prepare, serve, train, evaluate and answer; raises ResearchError if a stage fails.

    Args:
        preset: the source of the settings; a size that overrides it is not fitted to the machine.
        arguments: of the command line, for the services.
    """
    with stopping.keeping(lambda: kept(settings, "the same command continues it")):
        _run(settings, preset, arguments, console)


def _run(settings: Settings, preset: str, arguments: Sequence[str], console: Console) -> None:
    started = time.monotonic()
    require_startable(("retriever", "policy", "trainer"), settings)
    with stopping.keeping(lambda: KEPT):
        prepare(settings, console)
    record = RunDirectory(settings.run_dir)
    size = with_written_size(settings).grpo
    if record.is_finished(size.steps, size.minutes):
        empty(record.directory)
    with running(("retriever", "policy"), arguments, settings, console):
        console.print(f"status page: http://{settings.trainer.host}:{settings.trainer.port}/", highlight=False)
        plan(settings, preset, started, console)
        train(settings, fresh=False, console=console)
        show_evaluations(record.evaluations(), console)
        question = _one_to_show(settings)
        console.print("\nOne answer of the trained model, through POST /answer:", highlight=False)
        show_answer(ask_policy(settings, question), console)
    minutes = (time.monotonic() - started) / 60
    console.print(
        f"\nThe demo took {minutes:.1f} minutes; see {record.directory}/report.md and {record.directory}/training.png"
    )
    console.print("`make up` serves the trained model, and a page to ask it questions", highlight=False)


def _one_to_show(settings: Settings) -> str:
    """The first held-out question (two-hop if possible) that the evaluation did not ask, answered well or not."""
    questions = load_questions(settings.questions.held_out, "held_out", settings.paths.data)
    asked = {question.id for question in first_of_each_kind(questions, settings.evaluation.per_kind)}
    unasked = [question for question in questions if question.id not in asked] or questions
    return next((question for question in unasked if question.stratum == "two_hop"), unasked[0]).text
