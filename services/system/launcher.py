"""Runs the services side by side as child processes: restarts those that die or hang, and stops all at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console

from research.errors import ServiceError
from research.settings import Settings
from services.process import stopping
from services.process.children import how_it_ended
from services.process.log_files import begin_log
from services.process.parent import child_environment
from services.process.watchdog import Watchdog
from services.system.admin_token import shared_admin_token
from services.system.programs import Program, Service, programs_of
from services.system.supervisor import Supervisor, tail
from services.web.ports import require_free_port

_START_SECONDS = 600
# Less than `stopping.GRACE_SECONDS`, in which this process has to end as well.
_STOP_SECONDS = 7.5


@dataclass(frozen=True, slots=True)
class RunningService:
    """A child process and where it logs."""

    program: Program
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def running(
    services: Sequence[Service], arguments: Sequence[str], settings: Settings, console: Console
) -> Iterator[None]:
    """Start services, wait until each is ready, restart those that die or hang, and stop them all at the end.

    They share an admin token (`shared_admin_token`). With `policy.replicas`, each policy server is a child by itself. A
    service that dies five times in a row ends this process; the
    error shows the end of its log.

    Args:
        arguments: the command line's settings, passed on to each service.

    Raises:
        ConfigurationError: a port is taken, or the machine has too few GPUs or cores for `policy.replicas`.
        ServiceError: a service ended or did not become ready; the message shows the end of its log.
    """
    programs = {program.name: program for program in require_startable(services, settings)}
    started: dict[str, RunningService] = {}

    def kill() -> None:
        for service in list(started.values()):
            _signal(service, signal.SIGKILL)

    def say(line: str) -> None:
        # Its reader may have gone, for which rich would end this program, or its disk be full: services are restarted
        # all the same.
        with suppress(Exception, SystemExit):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    with shared_admin_token(settings), stopping.killing(kill):
        try:
            for name, program in programs.items():
                log = _log_of(program, settings)
                begin_log(log)
                started[name] = _start(program, arguments, log, say)
            for service in list(started.values()):
                _await_ready(service, console)

            def start_again(name: str) -> RunningService:
                _signal(started[name], signal.SIGKILL)  # a process that it left behind would hold its port
                return _start(programs[name], arguments, started[name].log, say)

            supervisor = Supervisor(
                started,
                start=start_again,
                is_ready=lambda service: _is_ready(service.program.url),
                log=say,
            )
            supervisor.start()
            try:
                yield
            finally:
                supervisor.end()
        finally:
            _stop(list(started.values()))


def require_startable(services: Sequence[Service], settings: Settings) -> list[Program]:
    """Check, before anything slow begins, that the services can be started.

    Returns:
        The processes that they are.

    Raises:
        ConfigurationError: a port is taken, or the machine has too few GPUs or cores for `policy.replicas`.
    """
    programs = programs_of(services, settings)
    for program in programs:
        require_free_port(program.host, program.port, f"{program.service}.port")
    return programs


def _log_of(program: Program, settings: Settings) -> Path:
    log = settings.paths.runs / "logs" / f"{program.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return log


def _start(program: Program, arguments: Sequence[str], log: Path, say: Callable[[str], None]) -> RunningService:
    # Appending keeps what a service logged before it died, and lets the log be emptied.
    with log.open("ab") as out:
        # A separate session: Ctrl-C reaches only this process, which ends the children in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", program.service, *arguments, *program.own_settings],
            env=child_environment() | program.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    Watchdog(process, program.url, lambda why: say(f"the {program.name} {why}")).start()
    return RunningService(program, process, log)


def _await_ready(service: RunningService, console: Console) -> None:
    started, name, url = time.monotonic(), service.program.name, service.program.url
    with console.status(f"{name} is starting; log: {service.log}"):
        while time.monotonic() - started < _START_SECONDS:
            if service.process.poll() is not None:
                raise ServiceError(
                    f"the {name} {how_it_ended(service.process.returncode)} while starting; "
                    f"the end of {service.log}:\n{tail(service.log)}"
                )
            if _is_ready(url):
                seconds = time.monotonic() - started
                console.print(f"{name} is ready at {url} ({seconds:.0f} s)", highlight=False)
                return
            time.sleep(0.3)
    raise ServiceError(f"the {name} was not ready within {_START_SECONDS} s; its log is {service.log}")


def _is_ready(url: str) -> bool:
    try:
        # Without certificates: to load them takes 20 ms of the processor each time, while a service needs it to start.
        return httpx.get(f"{url}/readyz", timeout=2.0, verify=False, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _stop(services: Sequence[RunningService]) -> None:
    """Ask each process group to end, then kill it."""
    for service in services:
        _signal(service, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    for service in services:
        with suppress(subprocess.TimeoutExpired):
            service.process.wait(max(0.1, deadline - time.monotonic()))
    for service in services:
        _signal(service, signal.SIGKILL)
        service.process.wait()


def _signal(service: RunningService, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(service.process.pid, number)
