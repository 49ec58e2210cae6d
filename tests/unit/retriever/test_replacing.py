"""What is dear to make again is not replaced by a command that only left out a setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from research.config import load_settings
from research.errors import ConfigurationError
from research.settings import Settings
from services.retriever.build.replacing import require_replaceable
from services.retriever.index.manifest import Encoding, Manifest, Recipe

BUILT = Recipe(
    encoding=Encoding(
        encoder_digest="e5",
        pooling="mean",
        query_prefix="query: ",
        passage_prefix="passage: ",
        max_passage_tokens=256,
        dimension=384,
    ),
    corpus_sha256="mine",
    structure="auto",
    lexical=False,
)
SHORTER = BUILT.model_copy(update={"encoding": BUILT.encoding.model_copy(update={"max_passage_tokens": 64})})
OTHERS = BUILT.model_copy(update={"corpus_sha256": "theirs"})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(overrides=[f"paths.data={tmp_path}", "corpus.index=mine", "corpus.name=other.jsonl"])


def publish(settings: Settings, count: int) -> None:
    settings.index_dir.mkdir(parents=True)
    Manifest(
        revision=BUILT.revision,
        recipe=BUILT,
        count=count,
        encoder="e5",
        build_backend="torch",
        created="2026-11-30",
        structure=None,
        milvus=None,
    ).write(settings.index_dir)


def plan(recipe: Recipe, backend: str = "torch", milvus: str = "") -> dict[str, Any]:
    return {"recipe": recipe.model_dump(), "backend": backend, "shard": 256, "milvus": milvus}


def require(settings: Settings, wanted: Recipe, **others: str) -> None:
    work = settings.index_dir.with_name(".mine.building")
    require_replaceable(settings, plan(wanted, **others), work, work / "plan.json")


def test_nothing_there_is_nothing_to_keep(settings: Settings) -> None:
    require(settings, BUILT)


@pytest.mark.parametrize("count", [10, 10_000_000])
def test_the_index_that_was_asked_for_may_be_made_again(settings: Settings, count: int) -> None:
    publish(settings, count)
    require(settings, BUILT)


def test_other_passages_never_replace_an_index(settings: Settings) -> None:
    publish(settings, 10)
    with pytest.raises(ConfigurationError, match=r"corpus\.name: other passages than those of other\.jsonl") as refused:
        require(settings, OTHERS)
    assert "research index corpus.name=" in str(refused.value)


def test_another_setting_replaces_what_takes_minutes(settings: Settings) -> None:
    publish(settings, 10_033)
    require(settings, SHORTER)


def test_another_setting_does_not_replace_what_takes_hours(settings: Settings) -> None:
    publish(settings, 21_015_324)
    with pytest.raises(ConfigurationError, match=r"encoder\.max_passage_tokens: 256, now 64"):
        require(settings, SHORTER)
    hybrid = BUILT.model_copy(update={"lexical": True, "structure": "ivf-rabitq"})
    with pytest.raises(
        ConfigurationError, match=r"index_type: 'auto', now 'ivf-rabitq'; corpus\.hybrid: False, now True"
    ):
        require(settings, hybrid)


@pytest.mark.parametrize(("shards", "refused"), [(0, False), (1, True)])
def test_vectors_of_an_unfinished_build_are_kept_too(settings: Settings, shards: int, refused: bool) -> None:
    work = settings.index_dir.with_name(".mine.building")
    (work / "shards").mkdir(parents=True)
    (work / "plan.json").write_text(json.dumps({**plan(BUILT), "build_id": "1"}))
    for number in range(shards):
        (work / "shards" / f"{number:010d}.npy").touch()
    require(settings, BUILT)
    if not refused:
        require(settings, OTHERS)
        return
    with pytest.raises(ConfigurationError, match=r"an unfinished build of index .* other passages"):
        require(settings, OTHERS)


def test_hours_of_vectors_are_kept_from_another_backend(settings: Settings) -> None:
    """The recipe is the same: any runtime may embed. But a build goes on with its own only."""
    work = settings.index_dir.with_name(".mine.building")
    (work / "shards").mkdir(parents=True)
    (work / "plan.json").write_text(json.dumps({**plan(BUILT), "build_id": "1"}))
    for number in range(200):
        (work / "shards" / f"{number:010d}.npy").touch()
    require(settings, BUILT)
    with pytest.raises(ConfigurationError, match=r"encoder\.passage_backend: 'torch', now 'onnx-int8'"):
        require(settings, BUILT, backend="onnx-int8")
    (work / "shards" / "0000000000.npy").unlink()
    for number in range(1, 6):
        (work / "shards" / f"{number:010d}.npy").unlink()
    require(settings, BUILT, backend="onnx-int8")


def test_an_index_is_not_embedded_again_for_another_address_of_milvus(settings: Settings) -> None:
    publish(settings, 1_000_000)
    with pytest.raises(ConfigurationError, match=r"corpus\.milvus: '', now 'http://localhost:19530'"):
        require(settings, BUILT, milvus="http://localhost:19530")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": {}}'])
def test_a_plan_that_nobody_can_read_holds_nothing_up(settings: Settings, text: str) -> None:
    work = settings.index_dir.with_name(".mine.building")
    work.mkdir(parents=True)
    (work / "plan.json").write_text(text)
    require(settings, OTHERS)
