"""What a build may replace in passing.

`research up` and `research prepare` build what is missing. They must not drop an index of hours because a command left
out a setting; to replace such an index is said outright, by `research index --passages`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import AssetError, ConfigurationError
from research.settings import Settings
from services.retriever.build.vector_shards import SHARD
from services.retriever.index.manifest import Manifest, Recipe, read_manifest

_MINUTES_OF_WORK = 50_000  # passages that a CPU embeds in minutes


def require_replaceable(settings: Settings, wanted: Mapping[str, Any], work: Path, plan_file: Path) -> None:
    """Refuse to replace an index, or to drop an unfinished one, that is of other passages or dear to make again.

    Args:
        wanted: the plan of the build that the settings ask for: its recipe, who embeds, and where vectors are kept.
        work: where an unfinished build has its vectors, with its plan.

    Raises ConfigurationError that names each setting that differs.
    """
    recipe = Recipe.model_validate(wanted["recipe"])
    if (there := _published(settings.index_dir)) is not None:
        milvus = there.milvus.uri if there.milvus else ""
        if not there.recipe.covers(recipe) or milvus != wanted["milvus"]:
            plan = {**wanted, "recipe": there.recipe.model_dump(), "milvus": milvus}
            _require(settings, plan, wanted, there.count, f"index {settings.index_dir} was built")
    if holds_other_work(plan_file, wanted):
        embedded = SHARD * sum(1 for _ in (work / "shards").glob("*.npy"))
        began = f"an unfinished build of index {settings.index_dir} began"
        _require(settings, _unfinished(plan_file) or {}, wanted, embedded, began)


def holds_other_work(plan_file: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a build with another plan than `wanted` is unfinished."""
    unfinished = _unfinished(plan_file)
    return unfinished is not None and {**unfinished, "build_id": ""} != {**wanted, "build_id": ""}


def _require(settings: Settings, there: Mapping[str, Any], wanted: Mapping[str, Any], passages: int, what: str) -> None:
    same_passages = there["recipe"]["corpus_sha256"] == wanted["recipe"]["corpus_sha256"]
    if not passages or (same_passages and passages <= _MINUTES_OF_WORK):
        return
    raise ConfigurationError(
        f"{what} with other settings ({'; '.join(_differences(settings, there, wanted))}), and is not replaced in "
        "passing. Give this command the settings of corpus.* and encoder.* that it was built with (a preset of yours "
        "keeps them: docs/own-data.md), or name another corpus.index, or replace it with `research index corpus.name=…`"
    )


def _differences(settings: Settings, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    built, asked = _named(there), _named(wanted)
    found = [f"{name}: {built[name]!r}, now {asked[name]!r}" for name in built if built[name] != asked[name]]
    if there["recipe"]["encoding"]["encoder_digest"] != wanted["recipe"]["encoding"]["encoder_digest"]:
        found.insert(0, f"encoder.name: another encoder than {settings.encoder.name}")
    if there["recipe"]["corpus_sha256"] != wanted["recipe"]["corpus_sha256"]:
        found.insert(0, f"corpus.name: other passages than those of {settings.corpus.name}")
    return found or ["the pooling of its encoder, or imported vectors"]


def _named(plan: Mapping[str, Any]) -> dict[str, Any]:
    recipe, encoding = plan["recipe"], plan["recipe"]["encoding"]
    return {
        "corpus.index_type": recipe["structure"],
        "corpus.hybrid": recipe["lexical"],
        "corpus.milvus": plan.get("milvus"),
        "encoder.passage_backend": plan.get("backend"),
        **{f"encoder.{key}": encoding[key] for key in ("query_prefix", "passage_prefix", "max_passage_tokens")},
    }


def _published(target: Path) -> Manifest | None:
    try:
        return read_manifest(target)
    except AssetError:
        return None


def _unfinished(plan_file: Path) -> dict[str, Any] | None:
    """The plan of an unfinished build, if it can be read."""
    try:
        plan = json.loads(plan_file.read_text(encoding="utf-8"))
        Recipe.model_validate(plan["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found: dict[str, Any] = plan
    return found
