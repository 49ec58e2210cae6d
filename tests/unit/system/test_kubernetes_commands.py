"""The probes and waits of deploy/kubernetes, run as they stand there, against real sockets and a real status page."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from research.config import load_settings
from services.trainer.api.app import create_app
from services.trainer.controller import RunController
from services.trainer.run_dir.run_dir import RunDirectory
from services.web.server import new_server
from tests.support.manifests import KUBERNETES, Manifests, render

Probe = Callable[[str, int, int], int]


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    """One overlay: no other changes a command."""
    return render(KUBERNETES / "overlays" / "cpu")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a trainer's status page, as rank 0 serves it."""
    settings = load_settings(overrides=[f"paths.runs={tmp_path_factory.mktemp('runs')}"], environment=False)
    server = new_server(create_app(RunController(settings), RunDirectory(settings.run_dir)), "127.0.0.1", 0, quiet=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def here(command: list[str], port: int, **variables: str) -> subprocess.Popen[bytes]:
    """A command of a manifest, started on this machine with less patience; whatever it connects to is at `port`."""
    words = []
    for word in command:
        word = re.sub(r"/dev/tcp/[\w-]+/\d+", f"/dev/tcp/127.0.0.1/{port}", word)
        word = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", word)
        words.append(word.replace("timeout=8", "timeout=2").replace("sleep 5", "sleep 0.05"))
    return subprocess.Popen(words, env={"PATH": os.environ["PATH"], **variables}, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def probe(manifests: Manifests) -> Probe:
    """Runs a probe of the trainer, by its name, against a port, in the pod of an index; returns the exit code."""

    def run(name: str, port: int, index: int) -> int:
        container = manifests.container("trainer")
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        command = container[name]["exec"]["command"]
        assert f"127.0.0.1:{ports['http']}/" in command[-1]
        return here(command, port, JOB_COMPLETION_INDEX=str(index)).wait(30)

    return run


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_the_trainer_is_ready_once_rank_zero_answers(probe: Probe, served: int, free_port: Callable[[], int]) -> None:
    assert probe("readinessProbe", served, 0) == 0
    assert probe("readinessProbe", free_port(), 0) != 0
    assert probe("readinessProbe", free_port(), 1) == 0  # there, no rank 0 runs


def test_the_trainer_is_killed_only_if_rank_zero_hangs(
    probe: Probe, served: int, silent: int, free_port: Callable[[], int]
) -> None:
    assert probe("livenessProbe", served, 0) == 0
    assert probe("livenessProbe", free_port(), 0) == 0  # torchrun waits for a lost pod
    assert probe("livenessProbe", silent, 0) != 0


def test_pods_wait_for_whom_they_need(manifests: Manifests, free_port: Callable[[], int]) -> None:
    waiting = {
        (service, each["name"]): each["command"]
        for service in ("policy", "trainer")
        for each in manifests.pod(service)["initContainers"]
    }
    assert set(waiting) == {
        ("policy", "wait-for-retriever"),
        ("trainer", "wait-for-retriever"),
        ("trainer", "wait-for-first"),
    }
    for command in waiting.values():
        ((host, number),) = re.findall(r"/dev/tcp/([\w-]+)/(\d+)", command[-1])
        assert int(number) in {each["port"] for each in manifests.get("Service", host)["spec"]["ports"]}
        port = free_port()
        process = here(command, port, JOB_COMPLETION_INDEX="1")
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            with socket.create_server(("127.0.0.1", port)):
                assert process.wait(30) == 0
        finally:
            process.kill()
    assert here(waiting["trainer", "wait-for-first"], free_port(), JOB_COMPLETION_INDEX="0").wait(30) == 0
