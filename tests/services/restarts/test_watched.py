"""`research serve --watch` lives and dies with its service, so that a container restarts what died or hangs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from services.web.ports import require_free_port
from tests.support.command import WAYS, Command, answers, await_condition, command


@contextmanager
def watched_trainer(tmp_path: Path, port: int, environment: dict[str, str]) -> Iterator[tuple[Command, psutil.Process]]:
    """The watching process and the trainer, which waits for orders."""
    arguments = ["serve", "--watch", "trainer", f"paths.runs={tmp_path}", f"trainer.port={port}"]
    with command(tmp_path / "log", arguments, WAYS[1], environment) as running:
        await_condition("the trainer", lambda: answers(port), running)
        (trainer,) = psutil.Process(running.process.pid).children()
        yield running, trainer


def test_a_service_that_dies_ends_its_watcher_with_its_code(
    tmp_path: Path, free_port: Callable[[], int], service_environment: dict[str, str]
) -> None:
    with watched_trainer(tmp_path, free_port(), service_environment) as (running, trainer):
        trainer.kill()
        assert running.process.wait(60) == 128 + signal.SIGKILL


def test_a_service_ends_in_order_with_its_watcher(
    tmp_path: Path, free_port: Callable[[], int], service_environment: dict[str, str]
) -> None:
    with watched_trainer(tmp_path, free_port(), service_environment) as (running, trainer):
        running.process.terminate()
        assert running.process.wait(60) == 128 + signal.SIGTERM
        assert not trainer.is_running()
    assert "no run was under way" in running.log.read_text()


@pytest.mark.slow
def test_a_service_that_hangs_is_ended_with_its_watcher(
    tmp_path: Path, free_port: Callable[[], int], service_environment: dict[str, str]
) -> None:
    port = free_port()
    with watched_trainer(tmp_path, port, service_environment) as (running, trainer):
        trainer.suspend()
        assert running.process.wait(120) == 128 + signal.SIGKILL
        require_free_port("127.0.0.1", port, "trainer.port")
    assert "watchdog: the trainer hangs: " in running.log.read_text()
