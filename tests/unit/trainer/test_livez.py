"""A trainer says what hangs, and answers while it reads what is slow to read."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from services.trainer.api.app import create_app
from services.trainer.controller import RunController
from services.trainer.learner.learner import Learner
from services.trainer.learner.team import Team
from services.trainer.loop import TrainingLoop
from services.trainer.parallel import learner_watch
from services.trainer.parallel.ranks import Ranks
from services.trainer.run_dir.run_dir import RunDirectory
from tests.support.tiny_model import random_sequences, tiny_settings, write_tiny_model


def test_a_learner_that_hangs_is_said_by_livez(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, ranks = tiny_settings(tmp_path), Ranks()
    team = Team(Learner(settings, write_tiny_model(tmp_path / "model"), ranks), ranks)
    controller = RunController(settings)
    loop = TrainingLoop.__new__(TrainingLoop)
    loop._run = cast(Any, SimpleNamespace(learner=team))
    controller._loop = loop
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    monkeypatch.setattr(learner_watch, "time", clock)
    with TestClient(create_app(controller, RunDirectory(settings.run_dir))) as client:

        def livez() -> int:
            return client.get("/livez").status_code

        with team.watch.at_work():
            clock.now = learner_watch.SILENT_SECONDS
            assert livez() == 200
            clock.now += 1
            answer = client.get("/livez")
            assert (answer.status_code, answer.json()["error"]) == (503, "stuck")
            assert "no sign of life for 3601 s" in answer.json()["message"]
            for work in (team.logprobs, team.grpo_update):
                work(random_sequences(2, seed=1))
                assert livez() == 200, f"{work.__name__} gives no sign of life"
                clock.now += learner_watch.SILENT_SECONDS + 1
                assert livez() == 503
        assert livez() == 200, "who has nothing to do does not hang"
        team.logprobs(random_sequences(2, seed=1))  # not in the learner's thread
        clock.now += learner_watch.SILENT_SECONDS + 1
        assert livez() == 200


def test_what_is_slow_to_read_does_not_hold_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH_ADMIN_TOKEN", "secret-for-tests")
    pipe = tmp_path / "questions.jsonl"
    os.mkfifo(pipe)
    turns: list[int] = []

    def write() -> None:
        """Give a reader its questions only after the loop has had turns; after a minute without."""
        with pipe.open("w") as file:  # waits until somebody reads
            before, deadline = len(turns), time.monotonic() + 60
            while len(turns) < before + 20 and time.monotonic() < deadline:
                time.sleep(0.01)
            held.append(len(turns) < before + 20)
            file.write("no question\n")

    async def scenario() -> None:
        controller = RunController(tiny_settings(tmp_path, f"questions.train={pipe}"))
        controller.start()
        while controller.is_running:
            turns.append(1)
            await asyncio.sleep(0.005)
        assert "questions.jsonl" in str(controller.status.error)

    held: list[bool] = []
    writer = threading.Thread(target=write)
    writer.start()
    asyncio.run(scenario())
    writer.join()
    assert held == [False], "the event loop was held while the questions were read"
