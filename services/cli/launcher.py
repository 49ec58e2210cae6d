"""Runs the services side by side as child processes; when one ends, or on Ctrl-C, all end."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from rich.console import Console

from research.errors import ServiceError
from research.settings import Settings
from services.web.auth import ADMIN_TOKEN_VARIABLE
from services.web.ports import require_free_port

Service = Literal["retriever", "policy", "trainer"]

_START_SECONDS = 600
_STOP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class RunningService:
    """A child process and where it listens and logs."""

    name: Service
    process: subprocess.Popen[bytes]
    url: str
    log: Path


@contextmanager
def running(
    services: Sequence[Service], arguments: Sequence[str], settings: Settings, console: Console
) -> Iterator[list[RunningService]]:
    """Start services, wait until each is ready, and stop them all at the end.

    They share an admin token; unless the environment has one, a random one is made for this time only.

    Args:
        arguments: what the command line was given about settings, handed on to each service.

    Raises:
        ConfigurationError: a port is taken.
        ServiceError: a service ended or did not get ready; the message shows the end of its log.
    """
    os.environ.setdefault(ADMIN_TOKEN_VARIABLE, secrets.token_urlsafe(24))
    require_free_ports(services, settings)
    started: list[RunningService] = []
    # `kill` and a terminal that goes away end the children as Ctrl-C does.
    former = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for name in services:
            service = _start(name, arguments, settings)
            started.append(service)
        for service in started:
            _await_ready(service, console)
        yield started
    finally:
        _stop(started)
        for number, handler in former.items():
            signal.signal(number, handler)


def require_free_ports(services: Sequence[Service], settings: Settings) -> None:
    """Raise ConfigurationError, before anything slow begins, if a service could not listen."""
    for name in services:
        require_free_port(getattr(settings, name).host, getattr(settings, name).port, f"{name}.port")


def wait_for_end(services: Sequence[RunningService]) -> RunningService:
    """Block until one service ends, and return it."""
    while True:
        for service in services:
            if service.process.poll() is not None:
                return service
        time.sleep(0.5)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _start(name: Service, arguments: Sequence[str], settings: Settings) -> RunningService:
    log = settings.paths.runs / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        # A session of its own: Ctrl-C reaches us alone, and we end the children in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli.main", "serve", name, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    at = getattr(settings, name)
    host = "127.0.0.1" if at.host == "0.0.0.0" else at.host
    return RunningService(name, process, f"http://{host}:{at.port}", log)


def _await_ready(service: RunningService, console: Console) -> None:
    started = time.monotonic()
    with console.status(f"{service.name} is starting; log: {service.log}"):
        while time.monotonic() - started < _START_SECONDS:
            if service.process.poll() is not None:
                raise ServiceError(
                    f"the {service.name} ended with code {service.process.returncode} while starting; "
                    f"the end of {service.log}:\n{tail(service.log)}"
                )
            if _is_ready(service.url):
                seconds = time.monotonic() - started
                console.print(f"{service.name} is ready at {service.url} ({seconds:.0f} s)", highlight=False)
                return
            time.sleep(0.3)
    raise ServiceError(f"the {service.name} was not ready within {_START_SECONDS} s; its log is {service.log}")


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False


def _stop(services: Sequence[RunningService]) -> None:
    """Ask each process group to end, then make it."""
    for service in services:
        _signal(service, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    for service in services:
        with suppress(subprocess.TimeoutExpired):
            service.process.wait(max(0.1, deadline - time.monotonic()))
        _signal(service, signal.SIGKILL)
        service.process.wait()


def _signal(service: RunningService, number: signal.Signals) -> None:
    try:
        os.killpg(service.process.pid, number)
    except ProcessLookupError:
        return
