"""`research study`."""

from __future__ import annotations

from typing import Annotated

import typer

from apps.options import Overrides, Preset, console, passed_on


def study(
    overrides: Overrides = None,
    preset: Preset = "study-cpu",
    report: Annotated[bool, typer.Option("--report", help="only write the report of the runs so far")] = False,
) -> None:
    """Train with several seeds and ablations, and report what was learned, with intervals.

    Use it to measure what the outcome reward itself teaches. It takes some hours on two otherwise idle CPU cores; an
    interrupted study continues where it was.

    Example: `research study study.seeds=[1,2]`
    """
    from apps.study.plan import StudyPlan
    from apps.study.report import write_study_report
    from apps.study.runner import run_study

    plan = StudyPlan.load(preset, overrides or [])
    if report:
        plan.check_same_settings()
        console.print(f"the report is {write_study_report(plan)}", highlight=False, soft_wrap=True)
    else:
        run_study(plan, passed_on(preset, overrides), console)
