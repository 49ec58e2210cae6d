"""What an earlier version of this project wrote still opens: a run, its episodes, an index manifest, bench records.

tests/fixtures/before_renames was written by commit de01fcb, before settings, evaluations and phases got today's names.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from apps.inspect.read import RunEpisodes
from research.bench.runs import read_runs
from research.weights.run_weights import newest_good
from services.retriever.index.manifest import MANIFEST, read_manifest
from services.trainer.learner.learner import Learner
from services.trainer.run_dir.checkpoints import CheckpointStore
from services.trainer.run_dir.run_dir import RunDirectory
from tests.support.tiny_model import tiny_settings, write_tiny_model
from tests.support.tiny_run import SETTINGS

FILES = Path(__file__).resolve().parents[2] / "fixtures" / "before_renames"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FILES / "run", tmp_path / "runs" / "demo"))


def test_its_settings_are_those_of_today(old_run: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, *SETTINGS, "checkpoints.keep=1", "grpo.steps=6")
    run = RunDirectory(old_run)
    run.require_same(settings)
    run.open(settings)
    run.require_same(settings)


def test_its_steps_and_evaluations_are_there(old_run: Path) -> None:
    run = RunDirectory(old_run)
    assert [entry["step"] for entry in run.metrics()] == [1, 2, 3, 4]
    assert set(run.evaluations()) == {"before", "sft", "after"}
    assert run.evaluation("sft") == run.evaluations()["sft"]
    assert len(run.answers("sft")) == 2


def test_its_checkpoint_is_restored(old_run: Path, tmp_path: Path) -> None:
    learner = Learner(tiny_settings(tmp_path, *SETTINGS), write_tiny_model(tmp_path / "tiny"))
    state = CheckpointStore(old_run / "checkpoints", keep=1).restore_latest(learner)
    assert state is not None
    assert (state.step, state.version, learner.updates) == (4, 5, 4)


def test_its_weights_are_served(old_run: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, *SETTINGS)
    found = newest_good(settings, lambda line: pytest.fail(line))
    assert found is not None
    assert found[1].name == "version-000005"


def test_its_episodes_are_inspected(old_run: Path) -> None:
    run = RunEpisodes(old_run)
    episodes = [shown for source in run.sources() for shown in run.read(source)]
    assert len(episodes) == 4 * 12 + 3 * 2
    assert not run.problems
    assert {shown.source.evaluation for shown in episodes} == {None, "before", "sft", "after"}
    assert all(shown.training is None for shown in episodes)  # which was not recorded then


def test_an_index_manifest_and_bench_records_are_read(tmp_path: Path) -> None:
    shutil.copy(FILES / "index-manifest.json", tmp_path / MANIFEST)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert (manifest.revision, manifest.count, manifest.recipe.revision) == (
        "49b5c5177fb6ff53",
        10033,
        manifest.revision,
    )
    [run] = read_runs([FILES / "bench"])
    assert (run.strategy, len(run.records)) == ("research", 2)
