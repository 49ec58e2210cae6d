"""Runs the policy: vLLM's server is a child of this process, which forwards signals and ends all descendants."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

from research.settings import Settings
from services.policy.settings_variable import SETTINGS_VARIABLE
from services.process import stopping
from services.process.parent import adopt_orphans, child_environment

# The time that vLLM gets to abort its requests in flight and end.
_STOP_SECONDS = 7.0


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, then raise Stopped; exit with vLLM's code if vLLM ends by itself."""
    adopt_orphans()
    # Ctrl-C reaches every process of the terminal. Only we signal the child, and not in the middle of its imports.
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.policy.serve"],
            env=child_environment() | {SETTINGS_VARIABLE: settings.model_dump_json()},
        )
    finally:
        signal.signal(signal.SIGINT, former)
    note = "the policy keeps no state; at its next start it serves the run's published weights again"
    with stopping.keeping(lambda: note), stopping.killing(_kill_family):
        try:
            code = process.wait()
        except stopping.Stopped:
            _end(process)
            raise
    # vLLM's engine does not notice that its server was killed.
    _kill_family()
    sys.exit(code if code >= 0 else 128 - code)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask vLLM to end, then kill it and its descendants."""
    deadline = time.monotonic() + _STOP_SECONDS
    family = _family()
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    psutil.wait_procs(family, timeout=max(0.1, deadline - time.monotonic()))
    _kill_family()
    process.wait()


def _family() -> list[psutil.Process]:
    """All descendants of this process."""
    return list(psutil.Process().children(recursive=True))


def _kill_family() -> None:
    for process in _family():
        with suppress(psutil.Error):
            process.kill()
