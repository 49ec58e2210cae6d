"""Settings as text: for `research config --describe`, for docs/settings.md, and for errors that name the nearest one.

python -m research.settings.describe > docs/settings.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from research.errors import ConfigurationError
from research.settings.base import Section
from research.settings.tree import Settings

_HEADER = """# Settings

Every setting of every command: `section.key=value` on the command line, `[section]` in a TOML preset,
`RESEARCH__SECTION__KEY` in the environment. `research config --describe [section]` prints this page, `research config`
prints the values that result. The file is generated: `python -m research.settings.describe > docs/settings.md`.
"""


@dataclass(frozen=True, slots=True)
class Described:
    """One setting: its full name, what it may be, its default ("" if a preset must give it), and what it does."""

    name: str
    allowed: str
    default: str
    description: str


def describe(names: Sequence[str] = ()) -> list[Described]:
    """The settings whose name, or whose section, is among `names`; all without any.

    Raises ConfigurationError for a name that is neither.
    """
    every = list(_described(Settings, ""))
    for name in names:
        if not any(_is_within(setting.name, name) for setting in every):
            raise ConfigurationError(f"{name} is neither a setting nor a section; sections: {', '.join(_sections())}")
    return [setting for setting in every if not names or any(_is_within(setting.name, name) for name in names)]


def setting_names() -> list[str]:
    """The full names of all settings."""
    return [setting.name for setting in _described(Settings, "")]


def section_description(section: str) -> str:
    """What a section is about, in a sentence or two."""
    return _first_paragraph(_sections()[section])


def as_markdown() -> str:
    """The page docs/settings.md."""
    parts = [_HEADER, "## At the top\n", _table(s for s in describe() if "." not in s.name)]
    for section in _sections():
        parts += [f"## [{section}]\n", f"{section_description(section)}\n", _table(describe([section]))]
    return "\n".join(parts)


def _table(settings: Sequence[Described] | Iterator[Described]) -> str:
    rows = ["| setting | allowed | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        cells = (f"`{setting.name}`", setting.allowed, f"`{setting.default}`" if setting.default else "required")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in (*cells, setting.description))} |")
    return "\n".join(rows) + "\n"


def _sections() -> dict[str, type[Section]]:
    fields = Settings.model_fields.items()
    return {
        name: kind for name, field in fields if isinstance(kind := field.annotation, type) and issubclass(kind, Section)
    }


def _is_within(setting: str, name: str) -> bool:
    return setting == name or setting.startswith(f"{name}.")


def _described(section: type[Section], prefix: str) -> Iterator[Described]:
    for key, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _described(kind, f"{key}.")
        else:
            yield Described(prefix + key, _allowed(field), _default(field), field.description or "")


def _first_paragraph(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split("\n\n")[0].split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    return "None" if value is None else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, int) else f'"{value}"'


def _allowed(field: FieldInfo) -> str:
    """The type in words, with its bounds."""
    words, bounds = _type_in_words(field.annotation, list(field.metadata))
    return f"{words}, {' and '.join(bounds)}" if bounds else words


def _type_in_words(kind: Any, metadata: list[Any]) -> tuple[str, list[str]]:
    while hasattr(kind, "__metadata__"):
        metadata = [*metadata, *kind.__metadata__]
        kind = get_args(kind)[0]
    bounds = [bound for each in metadata for bound in _bounds(each)]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind)), bounds
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind in plain:
        return plain[kind], bounds
    if get_origin(kind) in (list, tuple):
        return "a list", bounds
    if get_origin(kind) is dict:
        return "a table", bounds
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts:
        found = [_type_in_words(part, []) for part in parts]
        words = " or ".join(part for part, _ in found)
        bounds += [bound for _, inner in found for bound in inner]
        return words + (", or None" if type(None) in get_args(kind) else ""), bounds
    return {"Path": "a path"}.get(getattr(kind, "__name__", ""), str(kind)), bounds


def _bounds(constraint: Any) -> Iterator[str]:
    if isinstance(constraint, FieldInfo):
        for each in constraint.metadata:
            yield from _bounds(each)
    for kind, words in (
        (Ge, "at least {0.ge:g}"),
        (Gt, "above {0.gt:g}"),
        (Le, "at most {0.le:g}"),
        (Lt, "below {0.lt:g}"),
    ):
        if isinstance(constraint, kind):
            yield words.format(constraint)
    pattern = getattr(constraint, "pattern", None)
    if pattern:
        yield f"matching `{re.sub('[$^]', '', str(pattern))}`"


if __name__ == "__main__":
    print(as_markdown(), end="")
