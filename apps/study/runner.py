"""Runs a study: retriever and policy once, then every run that is not finished."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from rich.console import Console

from apps.study.plan import StudyPlan
from apps.study.report import write_study_report
from apps.study.view import StudyView
from builtin.prepare import prepare
from research.errors import TrainingError
from services.process import stopping
from services.system.launcher import require_startable, running
from services.trainer.main import train


def run_study(plan: StudyPlan, arguments: Sequence[str], console: Console) -> None:
    """Run what is not finished yet, and write the report.

    Raises ResearchError if a part fails; the same command continues from there.
    """
    with stopping.keeping(lambda: _kept(plan)):
        _run(plan, arguments, console)


def _kept(plan: StudyPlan) -> str:
    finished = sum(plan.is_finished(run) for run in plan.runs)
    return f"{finished} of {len(plan.runs)} runs are finished; the same command continues from there"


def _run(plan: StudyPlan, arguments: Sequence[str], console: Console) -> None:
    plan.check_same_settings()
    unfinished = [run for run in plan.runs if not plan.is_finished(run)]
    if unfinished:
        require_startable(("retriever", "policy", "trainer"), plan.settings)
        prepare(plan.settings, console)
        view = StudyView(plan)
        with running(("retriever", "policy"), arguments, plan.settings, console):
            for run in unfinished:
                console.rule(f"{run.name} ({plan.runs.index(run) + 1} of {len(plan.runs)})")
                plan.begin(run)
                train(plan.settings_of(run), fresh=False, console=console, view=view.follow)
                gc.collect()  # the learner is in reference cycles, and the next one needs its memory
                if not plan.is_finished(run):
                    raise TrainingError(f"{run.name} was stopped before its end; `research study` again continues it")
                plan.tidy()
                write_study_report(plan)  # what is known so far can be read while the rest runs
    console.print(f"the report is {write_study_report(plan)}", highlight=False, soft_wrap=True)
