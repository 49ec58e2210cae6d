"""Which weights of a run are served after a restart, and what is said of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from research.config import load_settings
from research.errors import AssetError
from research.settings import Settings
from research.weights.run_weights import (
    Origin,
    delete_quality_after,
    is_trained,
    newest_good,
    note_quality,
    quality_of,
    version_path,
    weights_dir,
    write_origin,
)
from services.policy.weights.start_weights import start_weights
from services.trainer.parallel.shards import write_state
from services.trainer.weights.publisher import write_checkpoint

BASE = "builtin:smollm2-135m-instruct"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    base = tmp_path / "data" / "models" / "smollm2-135m-instruct"
    base.mkdir(parents=True)
    save_file({"a": torch.zeros(4, 4, dtype=torch.bfloat16)}, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    return load_settings(overrides=[f"paths.data={tmp_path / 'data'}", f"paths.runs={tmp_path / 'runs'}", "run=first"])


def publish(settings: Settings, version: int, base: str = BASE) -> Path:
    target = version_path(weights_dir(settings), version)
    origin = Origin("first", str(settings.run_dir), base, version, trained=version > 0)
    source = settings.paths.data / "models" / "smollm2-135m-instruct"
    write_checkpoint(
        partial(write_state, {"a": torch.full((4, 4), float(version))}), source, target, "Think first.", origin
    )
    return target


def complaints(settings: Settings) -> tuple[tuple[int, Path] | None, list[str]]:
    said: list[str] = []
    return newest_good(settings, said.append), said


def test_the_newest_version_is_served_under_its_number(settings: Settings) -> None:
    publish(settings, 9)
    tenth = publish(settings, 10)
    assert complaints(settings) == ((10, tenth), [])
    started = start_weights(settings)
    assert (started.path, started.version) == (tenth.resolve(), "10")


def test_a_broken_version_is_warned_of_and_the_one_before_is_served(settings: Settings) -> None:
    ninth, tenth = publish(settings, 9), publish(settings, 10)
    file = tenth / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    found, said = complaints(settings)
    assert found == (9, ninth)
    assert "model.safetensors has a different checksum" in said[0]


def test_half_a_version_does_not_count(settings: Settings) -> None:
    ninth = publish(settings, 9)
    (weights_dir(settings) / "version-000010.partial").mkdir()
    empty = version_path(weights_dir(settings), 11)
    empty.mkdir()
    write_origin(empty, Origin("first", "", BASE, 11, trained=True))
    found, said = complaints(settings)
    assert found == (9, ninth)
    assert "holds no weights" in said[0]


def test_versions_of_another_base_model_are_not_served(settings: Settings) -> None:
    publish(settings, 9, base="some/other")
    found, said = complaints(settings)
    assert found is None
    assert "some/other" in said[0]
    assert start_weights(settings).version == "0"


def test_runs_of_before_there_were_checksums_are_served(settings: Settings) -> None:
    ninth = publish(settings, 9)
    (ninth / "manifest.json").unlink()
    (ninth / "origin.json").unlink()
    (settings.run_dir / "config.json").write_text(json.dumps({"model": {"name": BASE}}))
    assert complaints(settings) == ((9, ninth), [])
    assert is_trained(ninth)  # it says what it was trained with
    (settings.run_dir / "config.json").write_text(json.dumps({"model": {"name": "some/other"}}))
    assert complaints(settings)[0] is None


def test_base_and_paths_are_served_when_asked_for(settings: Settings) -> None:
    ninth = publish(settings, 9)
    publish(settings, 10)

    def serving(wish: str) -> Settings:
        return settings.model_copy(update={"policy": settings.policy.model_copy(update={"serve": wish})})

    assert start_weights(serving("base")).version == "0"
    explicit = start_weights(serving(str(ninth)))
    assert (explicit.path, explicit.version) == (ninth, "9")
    with pytest.raises(AssetError, match=r"policy\.serve: /nowhere is neither"):
        start_weights(serving("/nowhere"))


def test_version_0_is_the_untouched_model(settings: Settings) -> None:
    assert not is_trained(publish(settings, 0))
    assert is_trained(publish(settings, 1))
    assert not is_trained(settings.paths.data / "models" / "smollm2-135m-instruct")


def test_a_version_is_as_good_as_its_last_evaluation_said(settings: Settings) -> None:
    ninth = publish(settings, 9)
    assert quality_of(ninth) is None
    note_quality(settings.run_dir, 9, "step-000008", {"one_hop": {"em": 0.5, "n": 32, "f1": 0.6}})
    note_quality(settings.run_dir, 9, "after", {"one_hop": {"em": 0.58, "n": 64, "f1": 0.6}})
    assert quality_of(ninth) == {"evaluation": "after", "em": {"one_hop": 0.58}, "n": {"one_hop": 64}}
    (settings.run_dir / "quality.json").write_text("{ half")
    assert quality_of(ninth) is None


def test_a_run_that_goes_back_forgets_what_was_said_of_later_versions(settings: Settings) -> None:
    settings.run_dir.mkdir(parents=True)
    for version in (8, 9, 10):
        note_quality(settings.run_dir, version, "step", {"one_hop": {"em": 0.5, "n": 32}})
    delete_quality_after(settings.run_dir, 9)
    assert quality_of(publish(settings, 9)) is not None
    assert quality_of(publish(settings, 10)) is None


def test_a_run_on_published_weights_says_its_own_origin(settings: Settings, tmp_path: Path) -> None:
    ninth, target = publish(settings, 9), tmp_path / "second" / "version-000001"
    origin = Origin("second", "", str(ninth), 1, trained=True)
    write_checkpoint(partial(write_state, {"a": torch.ones(4, 4)}), ninth, target, "Think first.", origin)
    assert json.loads((target / "origin.json").read_text())["run"] == "second"
