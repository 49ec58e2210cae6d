"""The weights that a run has published: where they are, which of them are intact, and how good they were.

The trainer writes them and the policy serves them, also after a restart of either, so both use this module.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from research.atomic_io import write_json
from research.prompts import TRAINED_PROMPT
from research.settings import Settings
from research.weights.checksummed_dir import MANIFEST, corruption_in

ORIGIN = "origin.json"
QUALITY = "quality.json"
_KEPT_FIGURES = 20


@dataclass(frozen=True, slots=True)
class Origin:
    """Where published weights come from; it is stored next to them.

    `base` is the model that the run started with, by its name in the settings; version 0 is that model, untouched.
    `trained`: the weights were trained to search, in this run or before it.
    """

    run: str
    run_dir: str
    base: str
    version: int
    trained: bool


def weights_dir(settings: Settings) -> Path:
    """Where a run publishes its versions."""
    return settings.checkpoints.publish_dir or settings.run_dir / "weights"


def version_path(directory: Path, version: int) -> Path:
    """The weights directory of a version."""
    return directory / f"version-{version:06d}"


def versions(directory: Path) -> list[tuple[int, Path]]:
    """Finished versions, oldest first."""
    found = [(path.name.removeprefix("version-"), path) for path in directory.glob("version-*")]
    return sorted((int(number), path) for number, path in found if number.isdecimal())


def newest_good(settings: Settings, warn: Callable[[str], None]) -> tuple[int, Path] | None:
    """The newest intact version of the run `settings.run`; None if there is none.

    Versions of a base model other than `settings.model.name` do not count. A corrupt version is skipped with a warning.
    Versions from before checksums were kept are trusted.
    """
    for number, path in reversed(versions(weights_dir(settings))):
        base = _base_of(path, settings)
        if base is not None and base != settings.model.name:
            warn(f"{path} belongs to a run on {base}, not on {settings.model.name}, and is not served")
            return None
        if (path / MANIFEST).is_file():
            if fault := corruption_in(path):
                warn(f"{path} is corrupt ({fault}); the version before it is used")
                continue
        elif not any(path.glob("*.safetensors")):
            warn(f"{path} holds no weights; the version before it is used")
            continue
        return number, path
    return None


def write_origin(directory: Path, origin: Origin) -> None:
    """Record next to weights where they come from."""
    write_json(directory / ORIGIN, asdict(origin))


def read_origin(checkpoint: Path) -> Origin | None:
    """Where weights come from; None if they have no record of it."""
    try:
        return Origin(**json.loads((checkpoint / ORIGIN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_trained(checkpoint: Path) -> bool:
    """Whether weights were trained to search: a run's version after 0, or an exported model."""
    origin = read_origin(checkpoint)
    return origin.trained if origin else (checkpoint / TRAINED_PROMPT).is_file()


def note_quality(run_dir: Path, version: int, evaluation: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Record a version's figures in an evaluation on held-out questions, by kind of question."""
    noted = _quality(run_dir)
    noted.pop(str(version), None)
    noted[str(version)] = {
        "evaluation": evaluation,
        "em": {kind: each["em"] for kind, each in figures.items()},
        "n": {kind: each["n"] for kind, each in figures.items()},
    }
    write_json(run_dir / QUALITY, dict(list(noted.items())[-_KEPT_FIGURES:]))


def delete_quality_after(run_dir: Path, version: int) -> None:
    """Drop the figures of later versions: after a rollback, the run reuses their numbers."""
    noted = _quality(run_dir)
    kept = {number: figures for number, figures in noted.items() if number.isdecimal() and int(number) <= version}
    if kept != noted:
        write_json(run_dir / QUALITY, kept)


def quality_of(checkpoint: Path) -> dict[str, Any] | None:
    """The last evaluation of a run's version: `evaluation`, `em` and `n` by kind; None if there was none."""
    origin = read_origin(checkpoint)
    if origin is None:
        return None
    for run_dir in (checkpoint.parent.parent, Path(origin.run_dir)):
        if (found := _quality(run_dir).get(str(origin.version))) is not None:
            return dict(found)
    return None


def _quality(run_dir: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run_dir / QUALITY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _base_of(checkpoint: Path, settings: Settings) -> str | None:
    if origin := read_origin(checkpoint):
        return origin.base
    try:  # a run from before origins were recorded
        return str(json.loads((settings.run_dir / "config.json").read_text(encoding="utf-8"))["model"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
