"""The size of a run that was fitted to its machine; the demo and a served trainer keep it when they continue it."""

from __future__ import annotations

import json
from typing import Any

from research.atomic_io import write_json
from research.settings import Settings

FILE = "size.json"


def with_written_size(settings: Settings) -> Settings:
    """The settings with the size that their run was fitted to; unchanged if it was not."""
    try:
        size = json.loads((settings.run_dir / FILE).read_text(encoding="utf-8"))
        grpo = {name: size[name] for name in ("steps", "questions_per_step", "minutes")}
        return _with(settings, grpo, size["per_kind"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return settings


def write_size(settings: Settings) -> None:
    """Write the size of these settings to their run directory; it is on the disk when this returns."""
    grpo = settings.grpo
    size = {"steps": grpo.steps, "questions_per_step": grpo.questions_per_step, "minutes": grpo.minutes}
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    write_json(settings.run_dir / FILE, {**size, "per_kind": settings.evaluation.per_kind})


def _with(settings: Settings, grpo: dict[str, Any], per_kind: Any) -> Settings:
    tree = settings.model_dump()
    tree["grpo"] |= grpo
    tree["evaluation"]["per_kind"] = per_kind
    return Settings.model_validate(tree)
