"""`research plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from apps.options import Overrides, Preset, console
from apps.plan.fleets import fleet
from apps.plan.report import report
from research.config import load_settings


def plan(
    overrides: Overrides = None,
    preset: Preset = "qwen2.5-7b-musique",
    trainer: Annotated[str, typer.Option(help="GPUs of the trainer, such as 4xH100")] = "4xH100",
    policy: Annotated[str, typer.Option(help="GPUs of the policy servers")] = "4xH100",
    price: Annotated[float | None, typer.Option(help="of one GPU for one hour, in your currency")] = None,
) -> None:
    """Estimate memory, time, disk and costs of a run on given GPUs, before they are rented; needs none.

    It says what does not fit and which settings would make it fit. The figures follow from the model's configuration,
    the preset, and assumptions that it prints.

    Example: `research plan --preset qwen2.5-7b-musique --trainer 4xH100 --policy 4xH100 --price 2.5`
    """
    settings = load_settings(preset, overrides)
    console.print(
        report(settings, fleet(trainer, "--trainer"), fleet(policy, "--policy"), price),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
