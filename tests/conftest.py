"""Real services for tests: one subprocess each, on a free port, ended by its own pid."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import hypothesis
import pytest

from services.machine.number_formats import number_format
from tests.support.forked import Forked, importing
from tests.support.run_all import LANE, WITH_VLLM

# A busy machine is no reason to fail: speed is measured in benchmarks, never asserted.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")
# httpx waits 5 seconds for who names no time; what is tested names its own.
for part in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, 60.0)

REPOSITORY = Path(__file__).resolve().parents[1]
ASSETS = [
    "corpus/wikipedia-leads.jsonl",
    "indexes/wikipedia-leads/manifest.json",
    "models/multilingual-e5-small-enpt/model.safetensors",
    "models/smollm2-135m-instruct/config.json",
]


def pytest_report_header() -> str:
    """What this machine computes in, for whoever reads the log of a CI elsewhere."""
    return number_format("auto").line


@dataclass(frozen=True)
class Server:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes] | Forked
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)


Launch = Callable[..., Server]


@pytest.fixture(scope="session")
def service_environment() -> dict[str, str]:
    """Environment of subprocesses: as where no hub can be reached, and gentle on a shared machine."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The prepared models, corpus and index of the built-in preset."""
    directory = REPOSITORY / "data"
    if missing := [name for name in ASSETS if not (directory / name).exists()]:
        pytest.fail(f"{directory} lacks {', '.join(missing)}; run `make prepare`")
    return directory


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that finds a TCP port nobody listens on; below those that the kernel gives to clients."""
    lane = int(os.environ.get(LANE, "0"))
    candidates = iter(random.Random(os.getpid()).sample(range(10_000 + 4_500 * lane, 14_500 + 4_500 * lane), 4_500))

    def find() -> int:
        for port in candidates:
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
        raise OSError("no port is free")

    return find


@pytest.fixture(scope="session", autouse=True)
def forking(request: pytest.FixtureRequest) -> Iterator[None]:
    """The process from which programs are forked, before any other test forks from another one.

    It imports vLLM if one of the tests that run may need a policy, and is not started for unit tests alone.
    """
    paths = {item.path for item in request.session.items}
    if all(path.is_relative_to(REPOSITORY / "tests" / "unit") for path in paths):
        yield
        return
    folders = [REPOSITORY / folder for lane in WITH_VLLM for folder in lane]
    with importing(with_vllm=any(path.is_relative_to(folder) for path in paths for folder in folders)):
        yield


@contextlib.contextmanager
def launching(
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
    data_dir: Path,
    service_environment: dict[str, str],
) -> Iterator[Launch]:
    """A function that starts `research serve <name> <overrides>` and waits until it is ready.

    It is forked from a process that has imported everything, unless `forked=False` asks for the real way.
    """
    with contextlib.ExitStack() as running:

        def start(
            name: str,
            *overrides: str,
            timeout: float = 300,
            environment: dict[str, str] | None = None,
            port: int | None = None,
            forked: bool = True,
        ) -> Server:
            port = port or free_port()
            log = tmp_path_factory.mktemp(name) / "log.jsonl"
            # A run that somebody made in this folder is not what is tested.
            # Several policies may be up at once: each takes little memory.
            untrained = ["policy.serve=base", "policy.kv_cache_gib=1"] if name == "policy" else []
            settings = [f"paths.data={data_dir}", *untrained, *overrides, f"{name}.port={port}"]
            arguments = ["serve", name, *settings]
            whole_environment = {**service_environment, **(environment or {})}
            if forked:
                process: subprocess.Popen[bytes] | Forked = Forked(arguments, log, whole_environment)
            else:
                process = started(arguments, log, whole_environment)
            server = Server(f"http://127.0.0.1:{port}", process, log)
            running.callback(server_end, process)
            _await_ready(server, timeout)
            return server

        yield start


@pytest.fixture(scope="module")
def launch(
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
    data_dir: Path,
    service_environment: dict[str, str],
) -> Iterator[Launch]:
    """As `launching`; what a module has started ends with it."""
    with launching(tmp_path_factory, free_port, data_dir, service_environment) as start:
        yield start


@pytest.fixture(scope="session")
def shared_retriever(
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
    data_dir: Path,
    service_environment: dict[str, str],
) -> Iterator[Server]:
    """A retriever with the built-in settings, for every test that neither stops nor overloads it."""
    with launching(tmp_path_factory, free_port, data_dir, service_environment) as start:
        yield start("retriever")


def started(arguments: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """`research …` as a user starts it."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _await_ready(server: Server, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    with server.client() as client:
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                pytest.fail(f"the service ended with {server.process.returncode}:\n{server.log.read_text()}")
            with contextlib.suppress(httpx.TransportError):
                if client.get("/readyz").status_code == 200:
                    return
            time.sleep(0.05)
    pytest.fail(f"the service was not ready within {timeout} s:\n{server.log.read_text()}")


def server_end(process: subprocess.Popen[bytes] | Forked) -> None:
    """End a service and everything it started; it leads a process group of its own."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
