"""One run directory, one trainer."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from rich.console import Console

from research.settings import Settings
from services.trainer.api.app import create_app
from services.trainer.controller import RunController
from services.trainer.main import train
from services.trainer.run_dir.lock import RunInUseError, empty, only_trainer
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.run_dir.wanted import Wanted, read_wanted, write_wanted
from services.trainer.status import RunPhase
from tests.support.tiny_model import tiny_settings

HOLD = """
import sys, time, pathlib
from services.trainer.run_dir.lock import only_trainer
with only_trainer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("RESEARCH_ADMIN_TOKEN", raising=False)
    return tiny_settings(tmp_path)


def test_another_process_is_named_and_what_it_held_is_free_when_it_is_killed(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for act in (lambda: only_trainer(tmp_path).__enter__(), lambda: empty(tmp_path)):
            with pytest.raises(RunInUseError, match=f"in use by process {other.pid} on "):
                act()
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.communicate()
    with only_trainer(tmp_path):
        pass


def test_starting_over_deletes_all_but_the_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    empty(run)
    assert not run.exists()
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "weights").symlink_to(tmp_path)
    empty(run)
    assert [path.name for path in run.iterdir()] == [".lock"]
    assert tmp_path.exists()


def test_a_command_that_trains_is_refused_and_deletes_nothing(tmp_path: Path, free_port: Callable[[], int]) -> None:
    settings = tiny_settings(tmp_path, f"trainer.port={free_port()}")
    RunDirectory(settings.run_dir).open(settings)
    for fresh in (False, True):
        with only_trainer(settings.run_dir), pytest.raises(RunInUseError, match="in use by process"):
            train(settings, fresh=fresh, console=Console(quiet=True))
    assert (settings.run_dir / "config.json").is_file()


def test_a_served_trainer_refuses_to_start_and_leaves_the_orders_of_the_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESEARCH_ADMIN_TOKEN", "secret-for-tests")
    write_wanted(settings.run_dir, Wanted.RUNNING)
    app = create_app(RunController(settings, keeps_orders=True), RunDirectory(settings.run_dir), returning=True)
    with only_trainer(settings.run_dir), TestClient(app) as client:
        answer = client.post("/run/start", headers={"Authorization": "Bearer secret-for-tests"})
        assert (answer.status_code, "in use by process" in answer.text) == (409, True)
        assert any("in use by process" in line for line in client.get("/status").json()["lines"])
    assert read_wanted(settings.run_dir) is Wanted.RUNNING


def test_a_run_holds_its_directory_until_it_has_ended(settings: Settings) -> None:
    async def scenario() -> None:
        controller, other = RunController(settings), RunController(settings)
        assert controller.start()
        with pytest.raises(RunInUseError):
            other.start()
        with pytest.raises(Exception, match="RESEARCH_ADMIN_TOKEN"):
            await controller.wait()
        assert other.start()
        await other.cancel()
        assert controller.start()
        await controller.cancel()

    asyncio.run(scenario())


def test_a_run_that_loads_can_be_paused_and_stopped(settings: Settings) -> None:
    async def scenario() -> None:
        controller = RunController(settings, keeps_orders=True)
        assert not controller.pause()
        assert controller.start()
        assert controller.status.phase is RunPhase.STARTING
        assert not controller.start()
        assert controller.pause()
        assert read_wanted(settings.run_dir) is Wanted.PAUSED
        assert controller.start()
        assert controller.stop()
        assert read_wanted(settings.run_dir) is Wanted.STOPPED
        assert not controller.pause(), "it has been told to end"
        assert read_wanted(settings.run_dir) is Wanted.STOPPED
        await controller.cancel()

    asyncio.run(scenario())


def test_a_failed_run_is_told_once(settings: Settings) -> None:
    unretrieved: list[object] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context["message"]))
        controller = RunController(settings)
        controller.start()
        while controller.is_running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert controller.status.phase is RunPhase.FAILED

    asyncio.run(scenario())
    assert not unretrieved
