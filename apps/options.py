"""Options that many commands of `research` share, and their console."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

console = Console()

Preset = Annotated[
    str,
    typer.Option(
        "--preset", "-p", envvar="RESEARCH_PRESET", help="a name such as study-cpu, or the path of a TOML file"
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="settings that override the preset")
]


def passed_on(preset: str, overrides: list[str] | None) -> list[str]:
    """The arguments with which a command of ours starts another with the same settings."""
    return ["--preset", preset, *(overrides or [])]
