"""Checkpoints that a disk has spoilt, the order in which they are taken, and what exactly they bring back."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from research.errors import TrainingError
from research.weights.checksummed_dir import atomic_checksummed_dir, corruption_in
from services.trainer.learner.learner import Learner
from services.trainer.run_dir.checkpoints import CheckpointStore, RunState
from tests.support.checkpoint_child import digest, new_learner
from tests.support.tiny_model import random_sequences, write_tiny_model

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "random.json",
    "reference.json",
    "state.json",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def saved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """Three checkpoints, and the digest of each as it was saved."""
    work = tmp_path_factory.mktemp("saved")
    learner, store, meant = new_learner(tiny, work), CheckpointStore(work, keep=3), {}
    for step in (1, 2, 3):
        assert learner.grpo_update(random_sequences(2, seed=step)) is not None
        state = RunState(step, step, learner.updates, {"one_hop": step}, {"update": 0.1}, {"t": 0.1 * step}, step)
        meant[step] = digest(learner, state)
        store.save(learner, state)
    return work, meant


@pytest.fixture
def run(saved: tuple[Path, dict[int, str]], tiny: Path, tmp_path: Path) -> tuple[Path, CheckpointStore, Learner]:
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved[0], directory)
    return directory, CheckpointStore(directory, keep=3), new_learner(tiny, tmp_path)


Run = tuple[Path, CheckpointStore, Learner]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_everything_comes_back_bit_for_bit(run: Run, saved: tuple[Path, dict[int, str]]) -> None:
    _, store, learner = run
    state = store.restore_latest(learner)
    assert state == RunState(3, 3, 3, {"one_hop": 3}, {"update": 0.1}, {"t": 0.1 * 3}, 3)
    assert learner.updates == 3
    assert digest(learner, state) == saved[1][3]


@pytest.mark.parametrize("spoil", [flip_a_bit, cut_short, Path.unlink])
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(
    run: Run,
    saved: tuple[Path, dict[int, str]],
    caplog: pytest.LogCaptureFixture,
    name: str,
    spoil: Callable[[Path], None],
) -> None:
    directory, store, learner = run
    spoil(directory / "step-000003" / name)
    with caplog.at_level(logging.WARNING):
        state = store.restore_latest(learner)
    assert state is not None
    assert digest(learner, state) == saved[1][2]
    (warning,) = caplog.messages
    assert "step-000003" in warning
    # A bit of the manifest may be one of another file's checksum.
    assert name in warning or (name == "manifest.json" and "a different checksum" in warning)
    assert [path.name for path in store.all()] == ["step-000001", "step-000002"]
    assert (directory / "damaged-step-000003").is_dir()


def test_a_step_can_be_saved_again_after_it_was_set_aside_and_set_aside_again(run: Run) -> None:
    directory, store, learner = run
    for _ in range(2):
        flip_a_bit(directory / "step-000003" / "state.json")
        state = store.restore_latest(learner)
        assert state is not None
        assert state.step == 2
        store.save(learner, RunState(3, 3, 3, {}, {}))
    state = store.restore_latest(learner)
    assert state is not None
    assert state.step == 3


def test_when_none_is_whole_the_run_does_not_silently_begin_anew(run: Run, tmp_path: Path) -> None:
    directory, store, learner = run
    before = digest(learner, RunState(0, 0, 0, {}, {}))
    for path in store.all():
        flip_a_bit(path / "model.safetensors")
    for _ in range(2):  # the second start finds only what the first has set aside
        with pytest.raises(TrainingError, match=r"no checkpoint in .* is intact .*step-000001.*--fresh"):
            CheckpointStore(directory, keep=3).restore_latest(learner)
    assert digest(learner, RunState(0, 0, 0, {}, {})) == before
    assert CheckpointStore(tmp_path / "none", keep=3).restore_latest(learner) is None


def test_a_good_copy_that_is_put_back_is_taken(run: Run, saved: tuple[Path, dict[int, str]]) -> None:
    directory, store, learner = run
    for path in store.all():
        flip_a_bit(path / "model.safetensors")
    with pytest.raises(TrainingError):
        store.restore_latest(learner)
    shutil.copytree(saved[0] / "step-000002", directory / "step-000002")
    state = store.restore_latest(learner)
    assert state is not None
    assert state.step == 2


def test_leftovers_are_removed_and_the_newest_are_kept(run: Run) -> None:
    directory, _, learner = run
    (directory / "step-000004.partial").mkdir()
    (directory / "step-000004.partial" / "model.safetensors").write_bytes(b"half")
    store = CheckpointStore(directory, keep=2)
    assert store.restore_latest(learner) is not None
    assert not list(directory.glob("*.partial"))
    store.save(learner, RunState(4, 4, 3, {}, {}))
    assert sorted(path.name for path in directory.iterdir()) == ["reference-01", "step-000003", "step-000004"]


def test_a_save_that_fails_takes_nothing_away(run: Run) -> None:
    directory, _, learner = run
    store = CheckpointStore(directory, keep=1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(learner, RunState(4, 4, 4, {}, {}, cast(Any, {"not": object()})))
    assert len(store.all()) == 3
    state = store.restore_latest(learner)
    assert state is not None
    assert state.step == 3


def test_a_step_that_is_saved_again_stands_beside_and_is_the_newer_one(run: Run) -> None:
    directory, _, learner = run
    store = CheckpointStore(directory, keep=2)
    for version in (7, 8, 9):
        store.save(learner, RunState(3, version, 3, {}, {}))
    assert [path.name for path in store.all()] == ["step-000003-02", "step-000003-03"]
    state = store.restore_latest(learner)
    assert state is not None
    assert state.version == 9
    flip_a_bit(directory / "step-000003-03" / "state.json")
    state = store.restore_latest(learner)
    assert state is not None
    assert state.version == 8
    store.save(learner, RunState(4, 10, 3, {}, {}))
    assert [path.name for path in store.all()] == ["step-000003-02", "step-000004"]


def test_a_sealed_directory_is_never_overwritten(run: Run) -> None:
    directory, _, _ = run
    with pytest.raises(FileExistsError, match="step-000003"), atomic_checksummed_dir(directory / "step-000003"):
        pass
    assert corruption_in(directory / "step-000003") is None


def test_random_numbers_go_on_where_they_stopped(tiny: Path, tmp_path: Path) -> None:
    learner, store = new_learner(tiny, tmp_path), CheckpointStore(tmp_path / "checkpoints", keep=1)
    random.gauss(0, 1)  # leaves a second value for the next call inside the generator
    torch.randn(3)
    store.save(learner, RunState(0, 0, 0, {}, {}))
    expected = [random.gauss(0, 1), random.random(), torch.randn(3).tolist()]
    random.seed(9)
    torch.manual_seed(9)
    assert store.restore_latest(learner) is not None
    assert [random.gauss(0, 1), random.random(), torch.randn(3).tolist()] == expected


def test_the_manifest_names_every_other_file(run: Run) -> None:
    directory, _, _ = run
    manifest = json.loads((directory / "step-000003" / "manifest.json").read_text())
    assert sorted(manifest) == sorted(FILES)
