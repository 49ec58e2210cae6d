"""A run that is paused and then stopped, on a tiny model."""

from __future__ import annotations

import asyncio
from multiprocessing import Pipe
from pathlib import Path

from services.trainer.loop import TrainingLoop
from services.trainer.status import RunPhase, RunStatus
from tests.support import tiny_run
from tests.support.tiny_model import tiny_settings, write_tiny_model


async def pause_and_stop(loop: TrainingLoop, status: RunStatus) -> None:
    while status.step < 1:  # noqa: ASYNC110 (the loop tells nobody)
        await asyncio.sleep(0)
    loop.pause()
    while status.phase is not RunPhase.PAUSED:  # noqa: ASYNC110
        await asyncio.sleep(0)
    loop.stop()


def test_what_was_trained_before_a_pause_is_kept_by_a_stop(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    telling, _told = Pipe()
    tiny_run.train(model, tmp_path, telling, overrides=["checkpoints.interval=50"], control=pause_and_stop)
    steps = [path.name for path in sorted(tiny_settings(tmp_path).run_dir.glob("checkpoints/step-*"))]
    assert steps[-1] == "step-000001"
