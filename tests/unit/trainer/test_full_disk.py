"""A run that a full disk ends says so, and what to do."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from research.errors import TrainingError
from services.trainer import controller
from services.trainer.controller import RunController
from tests.support.tiny_model import tiny_settings


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device", "weights/version-000463.partial"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_in_words_and_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    @asynccontextmanager
    async def training_loop(*_: object) -> AsyncIterator[None]:
        raise fault
        yield

    async def scenario() -> None:
        run = RunController(tiny_settings(tmp_path))
        run.start()
        with pytest.raises(TrainingError, match=r"a disk is full .*make room, and the same command continues"):
            await run.wait()

    monkeypatch.setattr(controller, "training_loop", training_loop)
    asyncio.run(scenario())
    [line] = [each for each in caplog.records if "the run failed" in each.message]
    assert not line.exc_info
