"""Run the policy: vLLM's server is a child of this process, which passes signals on and makes sure that all ends."""

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
from services.process.parent import child_environment

# vLLM gives up what is under way and ends; this is how long that may take.
_STOP_SECONDS = 7.0


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; then raises Stopped. Exits with vLLM's code if it ends by itself."""
    # Ctrl-C reaches the whole terminal; the child is told by us alone, and not in the middle of its imports.
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.policy.serve"],
            env=child_environment() | {SETTINGS_VARIABLE: settings.model_dump_json()},
        )
    finally:
        signal.signal(signal.SIGINT, former)
    family = psutil.Process(process.pid)
    with stopping.keeping(lambda: "the policy keeps nothing; what a run has published it serves again"):
        try:
            with stopping.killing(lambda: _kill(_with_children(family))):
                code = process.wait()
        except stopping.Stopped:
            _end(process, family)
            raise
    sys.exit(code if code >= 0 else 128 - code)


def _end(process: subprocess.Popen[bytes], family: psutil.Process) -> None:
    """Ask vLLM to end, then make it and whatever it has started."""
    everybody = _with_children(family)
    deadline = time.monotonic() + _STOP_SECONDS
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    _, alive = psutil.wait_procs(everybody, timeout=max(0.1, deadline - time.monotonic()))
    _kill(alive)
    process.wait()


def _with_children(family: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return [*family.children(recursive=True), family]
    return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
