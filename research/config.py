"""Where settings come from.

A TOML preset gives the values; environment variables override the preset (`RESEARCH_SETTINGS="grpo.steps=5 seed=2"`,
then `RESEARCH__GRPO__STEPS=5`), and the command line (`grpo.steps=5`) overrides all of them. An unknown key is an error
everywhere. A setting's former name still works, with a warning that gives the present name.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from research.errors import AssetError, ConfigurationError
from research.settings import Settings
from research.settings.base import SecretValueError
from research.settings.describe import setting_names
from research.settings.former_names import present_name, with_present_names
from research.settings.objectives import with_objective

logger = logging.getLogger(__name__)
_warned: set[str] = set()

ENV_PREFIX = "RESEARCH__"
# Assignments as on the command line, separated by spaces as in a shell.
SETTINGS_VARIABLE = "RESEARCH_SETTINGS"
_OBJECTIVE, _OBJECTIVE_VARIABLE = "grpo.objective", "RESEARCH__GRPO__OBJECTIVE"
PRESET_DIR = Path(__file__).resolve().parent / "presets"
DEFAULT_PRESET = "quickstart-cpu"


def load_settings(
    preset: str | Path = DEFAULT_PRESET, overrides: list[str] | None = None, *, environment: bool = True
) -> Settings:
    """Read a preset, apply the environment and then `section.key=value` overrides.

    Args:
        preset: the name of a file in `research/presets/` (without `.toml`) or the path of a TOML file.
        environment: whether environment variables count.
        overrides: assignments such as `grpo.steps=5`; the value is read as TOML, or as a string where that fails.

    Raises:
        ConfigurationError: the preset does not exist, or a key or value is invalid; the message names each field.
    """
    path = _preset_path(preset)
    try:
        tree, former = with_present_names(tomllib.loads(path.read_text(encoding="utf-8")), strict=True)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    for old, new in former.items():
        _warn(old, new, path.name)
    _forget_former_objective(tree, overrides or [], environment)
    if environment:
        _assign_environment(tree)
    for assignment in overrides or []:
        _override(tree, assignment, "override ")
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, path)) from error


def _forget_former_objective(tree: dict[str, Any], overrides: Sequence[str], environment: bool) -> None:
    """Drop from a preset what an objective that is named after it sets, which the preset chose for another one."""
    assignments = [*(_environment_settings() if environment else []), *overrides]
    named = dict(assignment.replace(" ", "").split("=", 1) for assignment in assignments if "=" in assignment)
    objective = named.get(_OBJECTIVE, os.environ.get(_OBJECTIVE_VARIABLE) if environment else None)
    if objective is not None and isinstance(name := _parse_value(objective), str):
        for key in with_objective({"objective": name}):
            tree.get("grpo", {}).pop(key, None)


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
    variables = {
        name: name.removeprefix(ENV_PREFIX).lower().split("__") for name in os.environ if name.startswith(ENV_PREFIX)
    }
    _refuse_two_former_names(variables)
    # A present name wins over a former one, whatever the alphabet says.
    for name, keys in sorted(variables.items(), key=lambda item: (_present(item[1]) == item[1], item[0])):
        _assign(tree, keys, _parse_value(os.environ[name]), name)


def _refuse_two_former_names(variables: Mapping[str, list[str]]) -> None:
    """Raise ConfigurationError if two variables with former names set one setting to two values."""
    given: dict[tuple[str, ...], str] = {}
    for name, keys in sorted(variables.items()):
        if _present(keys) == keys:
            continue
        other = given.setdefault(tuple(_present(keys)), name)
        if os.environ[other] != os.environ[name]:
            raise ConfigurationError(f"{other} and {name} are two names of {'.'.join(_present(keys))}; set it once")


def _present(keys: list[str]) -> list[str]:
    """The path of a setting by today's names; of `bench.prices.gpt.input` the setting is `bench.prices`."""
    return [*present_name(".".join(keys[:2])).split(".", 1), *keys[2:]]


def _environment_settings() -> list[str]:
    try:
        return shlex.split(os.environ.get(SETTINGS_VARIABLE, ""))
    except ValueError as error:
        raise ConfigurationError(f"{SETTINGS_VARIABLE}: {error}") from error


def _override(tree: dict[str, Any], assignment: str, where: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals:
        raise ConfigurationError(f"{where}{assignment!r} is not of the form section.key=value")
    _assign(tree, key.strip().split("."), _parse_value(value.strip()), where + assignment)


def _parse_value(text: str) -> Any:
    if text == "None":
        return None  # which TOML cannot express
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(tree: dict[str, Any], keys: list[str], value: Any, where: str) -> None:
    if len(keys) == 1 and isinstance(value, Mapping):
        _assign_section(tree, keys[0], value, where)
        return
    if (present := _present(keys)) != keys:
        _warn(".".join(keys), ".".join(present), where)
    *sections, last = present
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigurationError(f"{'.'.join(present)}: {section} is a value, not a section")
    tree[last] = value


def _assign_section(tree: dict[str, Any], name: str, values: Mapping[str, Any], where: str) -> None:
    """Replace a section; settings of it that lie in another one by now are added there."""
    given, former = with_present_names({name: values}, strict=True)
    for old, new in former.items():
        _warn(old, new, where)
    for section, each in given.items():
        if section == present_name(name):
            tree[section] = each
        else:
            tree.setdefault(section, {}).update(each)


def _explain(error: ValidationError, path: Path) -> str:
    lines = [f"settings are invalid (preset {path.name}, environment and command line together):"]
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        what = "there is no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        nearest = _nearest(where) if problem["type"] == "extra_forbidden" else ""
        got = (
            f" (got {problem['input']!r})"
            if not isinstance(problem.get("ctx", {}).get("error"), SecretValueError)
            else ""
        )
        lines.append(f"  {where}: {what}{got}{nearest}" if where != "settings" else f"  {what}")
    return "\n".join(lines)


def _nearest(name: str) -> str:
    """The setting that was probably meant: its key is similar, or abbreviated; the same section is preferred."""
    section, _, key = name.rpartition(".")

    def likeness(known: str) -> float:
        its_section, _, its_key = known.rpartition(".")
        alike = SequenceMatcher(None, key, its_key).ratio()
        if key in its_key or key == "".join(word[0] for word in its_key.split("_")):
            alike = max(alike, 0.8)
        return alike + 0.1 * (section == its_section)

    nearest = max(setting_names(), key=likeness)
    return f"; did you mean {nearest}?" if likeness(nearest) >= 0.7 else "; `research config --describe` lists them all"


def _warn(old: str, new: str, where: str) -> None:
    """Once per name and process: a study loads its settings for every run."""
    if old not in _warned:
        _warned.add(old)
        logger.warning("%s: %s is named %s now; the old name will not be read forever", where, old, new)


def recorded_settings(run_dir: Path) -> dict[str, Any] | None:
    """The settings that a run was started with, by today's names, whatever version of this project wrote them.

    None if the directory holds no `config.json`. Raises AssetError, which says what to do, if it cannot be read.
    """
    path = run_dir / "config.json"
    if not path.is_file():
        return None
    try:
        recorded = json.loads(path.read_bytes())
        if not isinstance(recorded, dict):
            raise ValueError("it holds no JSON object")
        return with_present_names(recorded)[0]
    except (ValueError, RecursionError) as error:
        raise AssetError(
            f"{path} is spoilt ({error}): delete it if the settings are still those that the run was started with, and "
            "it is written anew; else give another name with run=…, or start over with --fresh"
        ) from error
