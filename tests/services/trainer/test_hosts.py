"""Two hosts that train together lose a process or all of a host, and go on: two torchruns, told what deploy/kubernetes
tells them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.support.manifests import KUBERNETES, render


class Hosts:
    """Torchruns with the arguments and variables of the Job, but one process each, at one address, without a model."""

    def __init__(self, work: Path, port: int) -> None:
        self.work, self._port = work, port
        manifests = render(KUBERNETES / "overlays" / "gpu-many-nodes")
        arguments = [word.replace("trainer-0:29500", f"127.0.0.1:{port}") for word in manifests.arguments("trainer")]
        assert f"--rdzv-endpoint=127.0.0.1:{port}" in arguments
        self._arguments = arguments[: arguments.index("-m")]
        names = ("TORCH", "NCCL")
        self._variables = {k: v for k, v in manifests.environment("trainer").items() if k.startswith(names)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        program = ["--nproc-per-node=1", "-m", "tests.support.hosts_child", str(self.work)]
        with (self.work / f"log-{len(self.processes)}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *self._arguments, *program],
                cwd=REPOSITORY,
                env={**os.environ, **self._variables, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def wait_for_leaders(self, count: int) -> None:
        """Wait until all ranks have met for the `count`th time."""
        deadline = time.monotonic() + 600
        while len(list(self.work.glob("leads-*"))) < count:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.work.glob("log-*")))

    def holds_rendezvous(self, process: subprocess.Popen[bytes]) -> bool:
        listening = (each for each in psutil.Process(process.pid).net_connections("tcp") if each.status == "LISTEN")
        return any(each.laddr.port == self._port for each in listening)

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        """As when a node loses power."""
        if process.poll() is None:
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()
            process.wait()


@pytest.fixture
def hosts(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path, free_port())
    yield hosts
    for process in hosts.processes:
        hosts.kill(process)


def test_two_hosts_go_on_after_a_failed_leader_and_after_a_lost_host(hosts: Hosts) -> None:
    first, second = hosts.start(), hosts.start()
    hosts.wait_for_leaders(1)
    (hosts.work / "fail").touch()
    hosts.wait_for_leaders(2)
    # Of two at one address, either may have the rendezvous; who has it listens, and stays.
    lost = second if hosts.holds_rendezvous(first) else first
    hosts.kill(lost)
    replaced = hosts.start()
    hosts.wait_for_leaders(3)
    (hosts.work / "end").touch()
    kept = first if lost is second else second
    assert (kept.wait(300), replaced.wait(300)) == (0, 0), hosts.logs()
