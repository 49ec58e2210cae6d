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
from services.process.parent import adopt_orphans, child_environment

# vLLM gives up what is under way and ends; this is how long that may take.
_STOP_SECONDS = 7.0


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; then raises Stopped. Exits with vLLM's code if it ends by itself."""
    adopt_orphans()
    # Ctrl-C reaches the whole terminal; the child is told by us alone, and not in the middle of its imports.
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.policy.serve"],
            env=child_environment() | {SETTINGS_VARIABLE: settings.model_dump_json()},
        )
    finally:
        signal.signal(signal.SIGINT, former)
    note = "the policy keeps nothing; what a run has published it serves again"
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
    """Ask vLLM to end, then make it and whatever it has started."""
    deadline = time.monotonic() + _STOP_SECONDS
    family = _family()
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    psutil.wait_procs(family, timeout=max(0.1, deadline - time.monotonic()))
    _kill_family()
    process.wait()


def _family() -> list[psutil.Process]:
    """What we have started, and what that has."""
    return list(psutil.Process().children(recursive=True))


def _kill_family() -> None:
    for process in _family():
        with suppress(psutil.Error):
            process.kill()
