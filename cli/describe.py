"""`research config --describe`: each setting's meaning, allowed values and default, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape

from research.settings.describe import Described, describe, section_description


def show_settings(names: Sequence[str], console: Console) -> None:
    """Explain the named sections or settings, or all; raises ConfigurationError for an unknown name."""
    for section, settings in groupby(describe(names), key=lambda setting: setting.name.rpartition(".")[0]):
        if section:
            console.print(f"\n[bold]\\[{section}][/] {escape(section_description(section))}", highlight=False)
        for setting in settings:
            _show(setting, console)


def _show(setting: Described, console: Console) -> None:
    default = f"default {setting.default}" if setting.default else "required"
    allowed = setting.allowed.replace("`", "")
    console.print(f"  [bold cyan]{setting.name}[/]  [dim]{escape(allowed)}; {escape(default)}[/]", highlight=False)
    console.print(f"      {escape(setting.description)}", highlight=False)
