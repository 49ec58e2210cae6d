"""What a build may replace in passing.

`research up` and `research prepare` build what is missing. They must not drop an index of hours because a command left
out a setting; to replace such an index is said outright, by `research index --passages`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from research.errors import AssetError, ConfigurationError
from research.settings import Settings
from services.retriever.build.vector_shards import SHARD
from services.retriever.index.manifest import Manifest, Recipe, read_manifest

_MINUTES_OF_WORK = 50_000  # passages that a CPU embeds in minutes


def require_replaceable(settings: Settings, wanted: Recipe, work: Path, plan_file: Path) -> None:
    """Refuse to replace an index, or to drop an unfinished one, that is of other passages or dear to make again.

    Args:
        wanted: what the settings ask for.
        work: where an unfinished build has its vectors, with its plan.

    Raises ConfigurationError that names each setting that differs.
    """
    if (there := _published(settings.index_dir)) is not None and not there.recipe.covers(wanted):
        _require(settings, there.recipe, wanted, there.count, f"index {settings.index_dir} was built")
    if (unfinished := _unfinished(plan_file)) is not None and unfinished != wanted:
        embedded = SHARD * sum(1 for _ in (work / "shards").glob("*.npy"))
        _require(settings, unfinished, wanted, embedded, f"an unfinished build of index {settings.index_dir} began")


def _require(settings: Settings, there: Recipe, wanted: Recipe, passages: int, what: str) -> None:
    same_passages = there.corpus_sha256 == wanted.corpus_sha256
    if not passages or (same_passages and passages <= _MINUTES_OF_WORK):
        return
    differences = _differences(settings, there.model_dump(), wanted.model_dump())
    raise ConfigurationError(
        f"{what} with other settings ({'; '.join(differences)}), and is not replaced in passing. Give this command the "
        "settings of corpus.* and encoder.* that the index was built with (a preset of yours keeps them: "
        "docs/own-data.md), or name another corpus.index, or replace it with `research index --passages …`"
    )


def _differences(settings: Settings, there: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    found = []
    if there["corpus_sha256"] != wanted["corpus_sha256"]:
        found.append(f"corpus.name: other passages than those of {settings.corpus.name}")
    for key, name in (("structure", "corpus.index_type"), ("lexical", "corpus.hybrid")):
        if there[key] != wanted[key]:
            found.append(f"{name}: {there[key]}, now {wanted[key]}")
    if there["encoding"]["encoder_digest"] != wanted["encoding"]["encoder_digest"]:
        found.append(f"encoder.name: another encoder than {settings.encoder.name}")
    found += [
        f"encoder.{key}: {built!r}, now {asked!r}"
        for key in ("query_prefix", "passage_prefix", "max_passage_tokens")
        if (built := there["encoding"][key]) != (asked := wanted["encoding"][key])
    ]
    return found or ["the pooling of its encoder"]


def _published(target: Path) -> Manifest | None:
    try:
        return read_manifest(target)
    except AssetError:
        return None


def _unfinished(plan_file: Path) -> Recipe | None:
    try:
        return Recipe.model_validate(json.loads(plan_file.read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
