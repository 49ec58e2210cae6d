"""A trainer says what hangs, and answers while it reads what is slow to read."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fastapi.testclient import TestClient

from services.trainer.api.app import create_app
from services.trainer.controller import RunController
from services.trainer.learner.learner import Learner
from services.trainer.learner.team import Team
from services.trainer.loop import TrainingLoop
from services.trainer.parallel import learner_watch
from services.trainer.parallel.ranks import Ranks
from services.trainer.run import Run
from services.trainer.run_dir.metrics_file import MetricsFile
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.weights.disk_copy import DiskCopy
from tests.support.tiny_model import random_sequences, tiny_settings, write_tiny_model


def test_a_learner_that_hangs_is_said_by_livez(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, ranks = tiny_settings(tmp_path), Ranks()
    team = Team(Learner(settings, write_tiny_model(tmp_path / "model"), ranks), ranks)
    controller = RunController(settings)
    loop = TrainingLoop.__new__(TrainingLoop)
    loop._run = cast(Any, SimpleNamespace(learner=team))
    controller._loop = loop
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
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


def test_a_record_that_is_slow_to_read_does_not_hold_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    held: list[bool] = []

    def slow(_: MetricsFile) -> list[Any]:
        """Read only after the loop has had turns; after a minute without."""
        before, deadline = len(turns), time.monotonic() + 60
        while len(turns) < before + 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        held.append(len(turns) < before + 20)
        return []

    monkeypatch.setattr(MetricsFile, "entries", slow)
    settings = tiny_settings(tmp_path)
    app = create_app(RunController(settings), RunDirectory(settings.run_dir))

    async def scenario() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            asked = asyncio.gather(client.get("/steps"), client.get("/metrics"))
            while not asked.done():
                turns.append(1)
                await asyncio.sleep(0.005)
            return [answer.status_code for answer in await asked]

    assert asyncio.run(scenario()) == [200, 200]
    assert held == [False, False], "the event loop was held while the record was read"


def test_so_many_steps_at_once_and_the_others_after_them(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    settings.run_dir.mkdir(parents=True)
    lines = (json.dumps({"step": step, "seconds": {}}) + "\n" for step in range(1, 10_001))
    (settings.run_dir / "metrics.jsonl").write_text("".join(lines))
    with TestClient(create_app(RunController(settings), RunDirectory(settings.run_dir))) as client:

        def steps(query: str) -> list[int]:
            return [entry["step"] for entry in client.get(f"/steps{query}").json()]

        assert steps("") == list(range(9_801, 10_001))
        assert steps("?after=0") == list(range(1, 201))
        assert steps("?after=9900") == list(range(9_901, 10_001))
        assert steps("?after=10000") == []
        assert client.get("/steps?after=-1").status_code == 422


def test_a_record_that_is_slow_to_write_does_not_hold_the_event_loop() -> None:
    turns: list[int] = []
    held: list[bool] = []

    def slow(*_: Any) -> None:
        before, deadline = len(turns), time.monotonic() + 60
        while len(turns) < before + 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        held.append(len(turns) < before + 20)

    run = Run.__new__(Run)
    run.drawn, run._record = {}, DiskCopy()
    run.run_dir = cast(Any, SimpleNamespace(write_episodes=slow))
    run.rollouts = cast(Any, SimpleNamespace(journal=SimpleNamespace(close=lambda *_, **__: None)))

    async def scenario() -> None:
        for step in (1, 2):  # the second waits for the first
            writing = asyncio.ensure_future(run.record_episodes(step, [], []))
            while not writing.done():
                turns.append(1)
                await asyncio.sleep(0.005)
            await writing
        written = asyncio.ensure_future(run._record.written())
        while not written.done():
            turns.append(1)
            await asyncio.sleep(0.005)

    asyncio.run(scenario())
    assert held == [False, False], "the event loop was held while episodes were recorded"
