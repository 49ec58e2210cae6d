"""The reference of the KL term: written once a run, found by every checkpoint that names it, deleted after the last."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from research.errors import TrainingError
from research.weights.checksummed_dir import atomic_checksummed_dir
from services.trainer.learner.learner import Learner
from services.trainer.run_dir.checkpoints import CheckpointStore, RunState
from services.trainer.run_dir.references import link_checkpoint
from tests.support.checkpoint_child import digest, new_learner
from tests.support.tiny_model import flat_parameters, random_sequences, tiny_settings, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def state(step: int) -> RunState:
    return RunState(step, step, step, {}, {})


def save_after_update(store: CheckpointStore, learner: Learner, step: int) -> str:
    """Save a step; returns the digest of what was saved."""
    assert learner.grpo_update(random_sequences(2, seed=step)) is not None
    meant = digest(learner, state(step))
    store.save(learner, state(step))
    return meant


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def in_the_old_form(checkpoints: Path, target: Path, step: str) -> None:
    """The checkpoint as it was written until 2026-11: the reference in it, and none named."""
    name = json.loads((checkpoints / step / "reference.json").read_text())["directory"]
    with atomic_checksummed_dir(target / step) as directory:
        for file in (*(checkpoints / step).iterdir(), checkpoints / name / "reference.safetensors"):
            if file.name not in ("reference.json", "manifest.json"):
                shutil.copy(file, directory)


def test_it_is_written_once_and_again_only_when_it_has_changed(tiny: Path, tmp_path: Path) -> None:
    learner, store = new_learner(tiny, tmp_path), CheckpointStore(tmp_path / "run", keep=2)
    for step in (1, 2):
        save_after_update(store, learner, step)
    assert names(tmp_path / "run") == ["reference-01", "step-000001", "step-000002"]
    assert not list(tmp_path.glob("run/step-*/reference.safetensors"))
    learner.end_sft()
    meant = save_after_update(store, learner, 3)
    assert names(tmp_path / "run") == ["reference-01", "reference-02", "step-000002", "step-000003"]
    save_after_update(store, learner, 4)
    assert names(tmp_path / "run") == ["reference-02", "step-000003", "step-000004"]
    shutil.rmtree(tmp_path / "run" / "step-000004")
    resumed = new_learner(tiny, tmp_path)
    assert CheckpointStore(tmp_path / "run", keep=2).restore_latest(resumed) == state(3)
    assert digest(resumed, state(3)) == meant


def test_a_roll_back_to_before_it_changed_finds_the_one_of_then(tiny: Path, tmp_path: Path) -> None:
    learner, store = new_learner(tiny, tmp_path), CheckpointStore(tmp_path / "run", keep=3)
    before = flat_parameters(learner.reference).clone()
    meant = save_after_update(store, learner, 1)
    learner.end_sft()
    assert not torch.equal(flat_parameters(learner.reference), before)
    assert store.restore_latest(learner) == state(1)
    assert torch.equal(flat_parameters(learner.reference), before)
    assert digest(learner, state(1)) == meant
    # What follows goes on with it, and writes none.
    save_after_update(store, learner, 2)
    assert names(tmp_path / "run") == ["reference-01", "step-000001", "step-000002"]


def flip_a_bit(directory: Path) -> None:
    path = directory / "reference.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_run(directory: Path) -> None:
    """Whole, but another than the checkpoint was written with."""
    shutil.rmtree(directory)
    with atomic_checksummed_dir(directory) as made:
        (made / "reference.safetensors").write_bytes(b"another")


@pytest.mark.parametrize("spoil", [flip_a_bit, shutil.rmtree, of_another_run])
def test_a_checkpoint_without_its_reference_is_not_believed(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    learner, store = new_learner(tiny, tmp_path), CheckpointStore(tmp_path / "run", keep=3)
    meant = save_after_update(store, learner, 1)
    learner.end_sft()
    save_after_update(store, learner, 2)
    spoil(tmp_path / "run" / "reference-02")
    with caplog.at_level(logging.WARNING):
        assert store.restore_latest(learner) == state(1)
    assert digest(learner, state(1)) == meant
    (warning,) = caplog.messages
    assert "step-000002" in warning
    assert "reference-02" in warning
    spoil(tmp_path / "run" / "reference-01")
    with pytest.raises(TrainingError, match=r"damaged-step-000001.*the reference that it names"):
        store.restore_latest(learner)


def test_one_that_is_lost_during_a_run_is_written_again(tiny: Path, tmp_path: Path) -> None:
    learner, store = new_learner(tiny, tmp_path), CheckpointStore(tmp_path / "run", keep=1)
    save_after_update(store, learner, 1)
    shutil.rmtree(tmp_path / "run" / "reference-01")
    meant = save_after_update(store, learner, 2)
    assert store.restore_latest(learner) == state(2)
    assert digest(learner, state(2)) == meant


def test_a_checkpoint_with_the_reference_inside_still_loads_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    learner, store = new_learner(tiny, tmp_path), CheckpointStore(tmp_path / "new", keep=2)
    learner.end_sft()
    meant = save_after_update(store, learner, 1)
    in_the_old_form(tmp_path / "new", tmp_path / "old", "step-000001")
    assert names(tmp_path / "old") == ["step-000001"]
    resumed, old = new_learner(tiny, tmp_path), CheckpointStore(tmp_path / "old", keep=1)
    assert old.restore_latest(resumed) == state(1)
    assert digest(resumed, state(1)) == meant
    # The next one is in today's form.
    meant = save_after_update(old, resumed, 2)
    assert names(tmp_path / "old") == ["reference-01", "step-000002"]
    again = new_learner(tiny, tmp_path)
    assert old.restore_latest(again) == state(2)
    assert digest(again, state(2)) == meant


def test_a_linked_checkpoint_brings_its_reference(tiny: Path, tmp_path: Path) -> None:
    learner, store = new_learner(tiny, tmp_path), CheckpointStore(tmp_path / "run", keep=1)
    learner.end_sft()
    meant = save_after_update(store, learner, 1)
    link_checkpoint(tmp_path / "run" / "step-000001", tmp_path / "other")
    shutil.rmtree(tmp_path / "run")
    resumed = new_learner(tiny, tmp_path)
    assert CheckpointStore(tmp_path / "other", keep=1).restore_latest(resumed) == state(1)
    assert digest(resumed, state(1)) == meant


def test_without_the_kl_term_there_is_none(tiny: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_settings(tmp_path, "grpo.kl_coefficient=0"), tiny)
    store = CheckpointStore(tmp_path / "run", keep=1)
    store.save(learner, state(1))
    assert names(tmp_path / "run") == ["step-000001"]
    assert not (tmp_path / "run" / "step-000001" / "reference.json").exists()
    assert store.restore_latest(learner) == state(1)
