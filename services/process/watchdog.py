"""Ends a service that hangs, so that whoever restarts what has ended restarts it."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress

# A minute in which not one of six questions is answered. A busy machine delays an answer by seconds.
_INTERVAL_SECONDS = 10.0
_FAILURES = 6
# The first start fetches models and compiles kernels; Kubernetes' startup probe waits as long (deploy/kubernetes).
_START_SECONDS = 1800.0
# Not through a proxy, which the environment may name for calls to the world.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Watchdog(threading.Thread):
    """Asks `/livez` until the process ends; kills its process group once it fails again and again.

    Until something listens at its port the service is starting, and has half an hour.

    Args:
        process: the leader of a process group of its own.
        url: of the service, without a path.
        say: receives one line, with the reason, before the kill.
        interval: seconds from one question to the next, and for each answer.
        start: seconds for the start.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        url: str,
        say: Callable[[str], None],
        *,
        interval: float = _INTERVAL_SECONDS,
        start: float = _START_SECONDS,
    ) -> None:
        super().__init__(name=f"watchdog of {url}", daemon=True)
        self._process, self._url, self._say = process, f"{url}/livez", say
        self._interval, self._start_seconds = interval, start

    def run(self) -> None:
        started, is_started, failures = time.monotonic(), False, 0
        while self._process.poll() is None:
            asked = time.monotonic()
            fault, listens = _fault(self._url, self._interval)
            is_started = is_started or listens
            failures = failures + 1 if fault is not None and is_started else 0
            if failures >= _FAILURES:
                self._kill(f"hangs: {fault}")
                break
            if not is_started and time.monotonic() - started > self._start_seconds:
                self._kill(f"has not started within {self._start_seconds:.0f} s: {fault}")
                break
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, asked + self._interval - time.monotonic()))

    def _kill(self, why: str) -> None:
        if self._process.poll() is None:
            # SIGTERM waits for what hangs, and a stopped process would never see it.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._say(f"{why}; it is killed")


def _fault(url: str, timeout: float) -> tuple[str | None, bool]:
    """Why a service is not alive, or None if it is; and whether anything listens."""
    try:
        with _opener.open(url, timeout=timeout):
            return None, True
    except urllib.error.HTTPError as error:
        with error, suppress(OSError, http.client.HTTPException):
            return f"{url} answers {error.code}: {error.read(500).decode(errors='replace')}", True
        return f"{url} answers {error.code}", True
    except (OSError, http.client.HTTPException) as error:
        refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
        return f"{url} does not answer ({error})", not refused
