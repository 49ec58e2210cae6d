"""Commands of ours under test: started with a mark by which all that they start is found, and sent signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.support.forked import Forked

# Ten are promised (unit/system/test_stopping.py); a machine that is busy with other tests takes some more.
MOST_SECONDS = 30.0
MARK, WHOLE = "RESEARCH_TEST_MARK", "RESEARCH_WHOLE_MATRIX"
ENVIRONMENT = {"RESEARCH_ADMIN_TOKEN": "admin-for-tests"}
SMALL = [
    "run=stopped",
    "grpo.questions_per_step=2",
    "grpo.group_size=4",
    "sft.traces={ one_hop = 8 }",
    "sft.steps=3",
    "evaluation.per_kind={ one_hop = 2 }",
    "checkpoints.interval=1",
    # What so small a model says after three supervised steps matters to nobody here, so it is cut short.
    "episode.max_turn_tokens=32",
    "episode.max_tokens=192",
]


@dataclass(frozen=True)
class Way:
    """A signal, and whether the parent ignores SIGINT, as a shell does for a job in the background."""

    number: signal.Signals
    ignored_by_parent: bool = False

    def __str__(self) -> str:
        return self.number.name + (" (ignored by the parent)" if self.ignored_by_parent else "")


WAYS = [Way(signal.SIGINT), Way(signal.SIGTERM), Way(signal.SIGINT, ignored_by_parent=True)]


def crossed(phases: list[str], first: int = 0) -> list[Any]:
    """Each phase with one way, from the one at `first` on, or with every one."""
    if os.environ.get(WHOLE):
        pairs = [(phase, way) for phase in phases for way in WAYS]
    else:
        pairs = [(phase, WAYS[place % len(WAYS)]) for place, phase in enumerate(phases, first)]
    return [pytest.param(phase, way, id=f"{phase}-{way}".replace(" ", "_")) for phase, way in pairs]


@dataclass
class Command:
    """A running command of ours, found again by a mark in the environment of all that it starts."""

    process: subprocess.Popen[bytes] | Forked
    mark: str
    log: Path
    seen: set[psutil.Process] = field(default_factory=set)

    def family(self) -> list[psutil.Process]:
        """What lives of all that it has started, as far as anybody ever looked: by the mark, by its session, or by
        descent (vLLM's processes write their name over their environment)."""
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid or process.environ().get(MARK) == self.mark:
                    self.seen |= {process, *process.children(recursive=True)}
        return [process for process in self.seen if _lives(process)]

    def stop(self, what: str, phase: str, way: Way, ports: list[int]) -> str:
        """Send the signal and check everything that is promised; returns the last line that was said."""
        self.family()
        sent = time.monotonic()
        self.process.send_signal(way.number)
        try:
            code = self.process.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{what} did not end in {phase} after {way}:\n{self.log.read_text()}")
        seconds = time.monotonic() - sent
        said = self.log.read_text(errors="replace")
        left = self.family()
        last = said.strip().splitlines()[-1]
        note(what, phase, way, code, seconds, left, last)
        assert code == 128 + way.number, said
        assert not left, f"{left} outlived the command:\n{said}"
        for port in ports:
            with pytest.raises(httpx.TransportError):
                local(port, "/livez", timeout=1)
        assert "Traceback" not in said, said
        assert "Task was destroyed" not in said, said
        return last


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    return False


def note(what: str, phase: str, way: Way, code: int, seconds: float, left: list[Any], last: str) -> None:
    if path := os.environ.get("RESEARCH_MATRIX_FILE"):
        with Path(path).open("a") as out:
            out.write(f"| {what} | {phase} | {way} | {code} | {seconds:.1f} | {len(left)} | {last} |\n")


@contextmanager
def command(
    log: Path, arguments: list[str], way: Way, environment: dict[str, str], forked: bool = False
) -> Iterator[Command]:
    """Start `research …`; whatever is left of it in the end is killed. `forked`: its imports are not what is tested."""
    mark = uuid.uuid4().hex
    environment = {**environment, **ENVIRONMENT, MARK: mark}
    process = (
        Forked(arguments, log, environment, ignores_sigint=way.ignored_by_parent)
        if forked
        else _started(log, arguments, way, environment)
    )
    started = Command(process, mark, log)
    try:
        yield started
    finally:
        for each in started.family():
            with suppress(psutil.Error):
                each.kill()
        process.kill()
        process.wait()


def _started(log: Path, arguments: list[str], way: Way, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN if way.ignored_by_parent else signal.getsignal(signal.SIGINT))
    try:
        with log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "cli.main", *arguments],
                cwd=REPOSITORY,
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
    finally:
        signal.signal(signal.SIGINT, former)


def await_condition(what: str, condition: Callable[[], bool], running: Command, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if running.process.poll() is not None:
            pytest.fail(f"it ended with {running.process.returncode} before {what}:\n{running.log.read_text()}")
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come within {seconds} s:\n{running.log.read_text()}")
        time.sleep(0.05)


def local(port: int, path: str, timeout: float = 30) -> httpx.Response:
    """GET from this machine; without the certificates, whose loading costs 20 ms of each look of a waiting loop."""
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=timeout, verify=False, trust_env=False)


def answers(port: int, path: str = "/readyz") -> bool:
    with suppress(httpx.HTTPError):
        return local(port, path).status_code == 200
    return False


def ports_in_a_row(free_port: Callable[[], int]) -> int:
    """The first of two ports for `policy.replicas=2`."""
    while True:
        first = free_port()
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", first + 1))
            return first


def phase_of(port: int) -> str:
    with suppress(httpx.HTTPError):
        return str(local(port, "/status").json()["phase"])
    return ""
