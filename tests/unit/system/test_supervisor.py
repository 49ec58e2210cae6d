"""What dies is started again, and what dies again and again is given up with the end of its log."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from research.errors import ServiceError
from services.process import log_files
from services.system.supervisor import Supervisor


@dataclass
class Child:
    process: subprocess.Popen[bytes]
    log: Path


class House:
    """One service whose lives are told beforehand: each `lives` is the Python code of one start."""

    def __init__(self, log: Path, lives: list[str]) -> None:
        self.log, self.lives, self.starts = log, lives, 0
        self.said: list[str] = []
        self.given_up: list[ServiceError] = []
        self.back = threading.Event()
        self.over = threading.Event()
        self.children = {"policy": self.start("policy")}

    def start(self, _: str) -> Child:
        code = self.lives[min(self.starts, len(self.lives) - 1)]
        self.starts += 1
        with self.log.open("ab") as out:
            return Child(subprocess.Popen([sys.executable, "-c", code], stdout=out, stderr=out), self.log)

    def say(self, line: str) -> None:
        self.said.append(line)
        if "ready again" in line:
            self.back.set()

    def give_up(self, error: ServiceError) -> None:
        self.given_up.append(error)
        self.over.set()

    def supervised(self) -> Supervisor[Child]:
        return Supervisor(
            self.children,
            start=self.start,
            is_ready=lambda child: child.process.poll() is None,
            log=self.say,
            give_up=self.give_up,
            back_off=0.01,
        )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "policy.log"


def test_a_service_that_dies_is_started_again(log: Path) -> None:
    house = House(log, ["raise SystemExit(3)", "import time; time.sleep(60)"])
    supervisor = house.supervised()
    supervisor.start()
    assert house.back.wait(120), house.said
    supervisor.end()
    house.children["policy"].process.kill()
    house.children["policy"].process.wait()
    assert house.starts == 2
    assert "the policy ended with code 3" in house.said[0]
    assert str(log) in house.said[0]


def test_a_log_does_not_grow_without_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "MOST_BYTES", 10)
    house = House(log, ["import time; print('x' * 20, flush=True); time.sleep(60)"])
    supervisor = house.supervised()
    supervisor.start()
    older = log.with_name("policy.log.1")
    while not (older.exists() and older.stat().st_size and not log.stat().st_size):
        assert house.children["policy"].process.poll() is None
    supervisor.end()
    house.children["policy"].process.kill()
    house.children["policy"].process.wait()
    assert older.read_text() == "x" * 20 + "\n"


@pytest.mark.slow
def test_the_fifth_death_in_a_row_is_the_last(log: Path) -> None:
    house = House(log, ["print('no such weights', flush=True); import os; os.kill(os.getpid(), 9)"])
    supervisor = house.supervised()
    supervisor.start()
    assert house.over.wait(120), house.said
    supervisor.end()
    assert house.starts == 5
    assert sum("is restarted" in line for line in house.said) == 4
    assert "by signal 9, the 5th time in a row" in str(house.given_up[0])
    assert "no such weights" in str(house.given_up[0])


def test_a_start_that_fails_counts_as_a_death(log: Path) -> None:
    house = House(log, ["raise SystemExit(3)"])

    def failing(_: str) -> Child:
        house.starts += 1
        raise OSError("no more processes")

    supervisor = house.supervised()
    supervisor._start = failing
    supervisor.start()
    assert house.over.wait(120), house.said
    supervisor.end()
    assert any("no more processes" in line for line in house.said)
