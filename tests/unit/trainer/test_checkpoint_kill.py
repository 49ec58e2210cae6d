"""SIGKILL while checkpoints are written: what is found afterwards is always one that was meant, whole."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from research.weights.checksummed_dir import PARTIAL
from services.trainer.run_dir.checkpoints import CheckpointStore
from tests.support.checkpoint_child import KEEP, digest, new_learner, train_and_save
from tests.support.tiny_model import write_tiny_model

KILLS = 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tiny: Path, tmp_path: Path) -> None:
    # The fork server imports torch once; each child is then there in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.checkpoint_child"])
    rng = random.Random(20)
    meant: dict[int, str] = {}
    interrupted, restored_steps = 0, []
    learner = new_learner(tiny, tmp_path)
    store = CheckpointStore(tmp_path / "checkpoints", KEEP)
    for _ in range(KILLS):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=train_and_save, args=(tiny, tmp_path, sender))
        child.start()
        sender.close()
        for _ in range(rng.randint(2, 4)):  # one whole save at least, and then into the next
            step, meant_digest = receiver.recv()
            meant[step] = meant_digest
        time.sleep(rng.uniform(0.0, 0.03))  # the moment of the kill is what is tested
        child.kill()
        child.join()
        while receiver.poll():
            try:
                step, meant_digest = receiver.recv()
            except EOFError:
                break
            meant[step] = meant_digest
        interrupted += any(tmp_path.glob(f"checkpoints/step-*{PARTIAL}"))
        state = store.restore_latest(learner)
        assert state is not None
        assert digest(learner, state) == meant[state.step]
        assert state.step >= max(meant) - 1  # never further back than the save that was interrupted
        restored_steps.append(state.step)
        assert not list(tmp_path.glob("checkpoints/damaged-*"))
        assert not list(tmp_path.glob(f"checkpoints/*{PARTIAL}"))
    assert interrupted >= 3, "hardly any kill hit a save, so nothing was shown"
    assert restored_steps == sorted(restored_steps)
