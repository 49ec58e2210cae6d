"""Where settings come from.

A TOML preset gives the values; environment variables override the preset (`RESEARCH_SETTINGS="grpo.steps=5 seed=2"`,
then `RESEARCH__GRPO__STEPS=5`), and the command line (`grpo.steps=5`) overrides all of them. An unknown key is an error
everywhere.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from research.errors import ConfigurationError
from research.settings import Settings

ENV_PREFIX = "RESEARCH__"
# Assignments as on the command line, parted by spaces as in a shell.
SETTINGS_VARIABLE = "RESEARCH_SETTINGS"
PRESET_DIR = Path(__file__).resolve().parent / "presets"
DEFAULT_PRESET = "quickstart-cpu"


def load_settings(
    preset: str | Path = DEFAULT_PRESET, overrides: list[str] | None = None, *, environment: bool = True
) -> Settings:
    """Read a preset, apply the environment and then `section.key=value` overrides.

    Args:
        preset: the name of a file in `research/presets/` (without `.toml`) or the path of a TOML file.
        environment: whether its variables count.
        overrides: assignments such as `grpo.steps=5`; the value is read as TOML, or as a string where that fails.

    Raises:
        ConfigurationError: the preset does not exist or a key or value is wrong; the message names each field.
    """
    path = _preset_path(preset)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    if environment:
        _assign_environment(tree)
    for assignment in overrides or []:
        _override(tree, assignment, "override ")
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, path)) from error


def _preset_path(preset: str | Path) -> Path:
    path = Path(preset)
    if path.suffix != ".toml":
        path = PRESET_DIR / f"{preset}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESET_DIR.glob("*.toml")))
        raise ConfigurationError(f"there is no preset {str(preset)!r}; known presets: {known}; or give a .toml file")
    return path


def _assign_environment(tree: dict[str, Any]) -> None:
    for assignment in _environment_settings():
        _override(tree, assignment, f"{SETTINGS_VARIABLE}: ")
    for key, value in sorted(os.environ.items()):
        if key.startswith(ENV_PREFIX):
            _assign(tree, key.removeprefix(ENV_PREFIX).lower().split("__"), _parse_value(value))


def _environment_settings() -> list[str]:
    try:
        return shlex.split(os.environ.get(SETTINGS_VARIABLE, ""))
    except ValueError as error:
        raise ConfigurationError(f"{SETTINGS_VARIABLE}: {error}") from error


def _override(tree: dict[str, Any], assignment: str, where: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals:
        raise ConfigurationError(f"{where}{assignment!r} is not of the form section.key=value")
    _assign(tree, key.strip().split("."), _parse_value(value.strip()))


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    *sections, last = keys
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigurationError(f"{'.'.join(keys)}: {section} is a value, not a section")
    tree[last] = value


def _explain(error: ValidationError, path: Path) -> str:
    lines = [f"settings are wrong (preset {path.name}, environment and command line together):"]
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        what = "there is no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"  {where}: {what} (got {problem['input']!r})" if where != "settings" else f"  {what}")
    return "\n".join(lines)
