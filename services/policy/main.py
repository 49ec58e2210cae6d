"""Runs the policy: vLLM's servers are children of this process, which forwards signals and ends all descendants."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread

import psutil

from research.settings import Settings
from services.machine.division import server_environments
from services.policy.settings_variable import SETTINGS_VARIABLE
from services.process import stopping
from services.process.children import how_it_ended, relay
from services.process.parent import adopt_orphans, child_environment
from services.web.auth import ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE, environment_secret
from services.web.ports import require_free_port

# The time that vLLM gets to abort its requests in flight and end.
_STOP_SECONDS = 7.0
_POLL_SECONDS = 0.2
# A process that was killed gives gigabytes back first; until then it may hold its port.
_GONE_SECONDS = 2.0
_LAST_LINES_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Server:
    """One vLLM; `log` copies what it says if there are several, so that each line tells whose it is."""

    name: str
    process: subprocess.Popen[bytes]
    log: Thread | None


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, then raise Stopped.

    If one server ends by itself, all end and this process exits with its code: whoever watches this process knows of
    no other sign that a part of it is gone.

    Raises:
        ConfigurationError: a port is taken, a secret unfit, or the machine has too few GPUs or cores for
            `policy.replicas`.
    """
    policy = settings.policy
    # vLLM would tell of a bad secret with a traceback, after half a minute.
    for secret in (ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE):
        environment_secret(secret)
    for port in policy.ports:
        require_free_port(policy.host, port, "policy.port")
    parts = server_environments(policy)
    adopt_orphans()
    note = "the policy keeps no state; at its next start it serves the run's published weights again"
    with stopping.keeping(lambda: note), stopping.killing(_kill_family):
        servers: list[_Server] = []
        try:
            for port, part in zip(policy.ports, parts, strict=True):
                servers.append(_start(settings, port, part))
            ended = _first_to_end(servers)
        except stopping.Stopped:
            _end(servers)
            raise
    # vLLM's engine does not notice that its server was killed.
    _kill_family()
    code = ended.process.returncode
    if policy.replicas > 1:
        _await_logs(servers)
        print(
            f"the {ended.name} {how_it_ended(code)}; all {policy.replicas} policy servers were ended", file=sys.stderr
        )
    sys.exit(code if code >= 0 else 128 - code)


def _start(settings: Settings, port: int, part: dict[str, str]) -> _Server:
    """Start the server of one port on its part of the machine."""
    several = settings.policy.replicas > 1
    own = settings.model_copy(update={"policy": settings.policy.model_copy(update={"port": port, "replicas": 1})})
    environment = {
        "OMP_NUM_THREADS": str(settings.policy.threads),  # OpenMP reads it once, as torch is imported
        SETTINGS_VARIABLE: own.model_dump_json(),
    }
    # Ctrl-C reaches every process of the terminal. Only we signal the child, and not in the middle of its imports.
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.policy.serve"],
            env=child_environment() | part | environment,
            stdout=subprocess.PIPE if several else None,
            stderr=subprocess.STDOUT if several else None,
        )
    finally:
        signal.signal(signal.SIGINT, former)
    name = f"policy-{port}"
    return _Server(name, process, relay(process.stdout, name) if process.stdout else None)


def _first_to_end(servers: Sequence[_Server]) -> _Server:
    while True:
        for server in servers:
            if server.process.poll() is not None:
                return server
        time.sleep(_POLL_SECONDS)


def _end(servers: Sequence[_Server]) -> None:
    """Ask each server to end, then kill it and its descendants."""
    deadline = time.monotonic() + _STOP_SECONDS
    family = _family()
    for server in servers:
        server.process.terminate()
    for server in servers:
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(max(0.1, deadline - time.monotonic()))
    psutil.wait_procs(family, timeout=max(0.1, deadline - time.monotonic()))
    _kill_family()
    for server in servers:
        server.process.wait()
    _await_logs(servers)


def _await_logs(servers: Sequence[_Server]) -> None:
    """Let what the servers said last be read, before we say how they ended."""
    deadline = time.monotonic() + _LAST_LINES_SECONDS
    for server in servers:
        if server.log is not None:
            server.log.join(max(0.0, deadline - time.monotonic()))


def _family() -> list[psutil.Process]:
    """All descendants of this process."""
    return list(psutil.Process().children(recursive=True))


def _kill_family() -> None:
    family = _family()
    for process in family:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(family, timeout=_GONE_SECONDS)
