"""Our services as processes of their own: `research …`, forked from a process that has imported everything already.

What runs is the command itself; only its imports, ten seconds of a processor, are not repeated at each of some hundred
starts. Where the environment must be there before Python is (`LD_PRELOAD`), it is started the usual way.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[3]
_IMPORTED = ["cli.main", "services.trainer.main", "services.trainer.wiring", "services.retriever.main"]
_STOP_SECONDS = 20.0


def _run(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """In the child: become a session of its own and run the command."""
    os.setsid()
    threading.Thread(target=_end_with_the_bench, daemon=True).start()
    with open(log, "ab", buffering=0) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["research", *arguments]
    from cli.main import main

    main()


def _end_with_the_bench() -> None:
    """Also if it was killed and could end nothing."""
    bench = multiprocessing.parent_process()
    if bench is not None:
        bench.join()
        os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class Program:
    """A command of ours that can be started again and again; `log` is appended to."""

    name: str
    arguments: list[str]
    port: int
    log: Path
    environment: dict[str, str]
    preload: str = ""  # for LD_PRELOAD
    _process: Any = field(default=None)

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.preload:
            with self.log.open("ab") as out:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "cli.main", *self.arguments],
                    cwd=REPOSITORY,
                    env={**os.environ, **self.environment, "LD_PRELOAD": self.preload},
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        self._process = context.Process(target=_run, args=(self.arguments, str(self.log), self.environment))
        self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def exit_code(self) -> int | None:
        """None while it runs, or if it was never started."""
        if self._process is None:
            return None
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        self._process.join(0)
        code: int | None = self._process.exitcode
        return code

    @property
    def runs(self) -> bool:
        return self._process is not None and self.exit_code is None

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it has started, at once: a machine that dies takes all of them."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal_all(signal.SIGKILL)
            self._wait(10)

    def stop(self) -> None:
        """SIGTERM; what has not ended after a while is killed."""
        if self._process is None:
            return
        self.signal_all(signal.SIGCONT)
        if self.runs:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        self._wait(_STOP_SECONDS)
        self.kill()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (self.runs or self._left_over()) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _left_over(self) -> bool:
        """Whether anything that it has started still lives, and holds its port."""
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if os.getpgid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    return True
        return False

    def await_ready(self, seconds: float = 400) -> None:
        """Wait until `/readyz` answers 200; raises RuntimeError with the end of the log if it does not."""
        self.await_that("ready", lambda: answers(self.port, "/readyz"), seconds)

    def await_that(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if (not self.runs and not condition()) or time.monotonic() > deadline:
                how = f"did not get {what} in {seconds:g} s" if self.runs else f"ended with {self.exit_code}"
                raise RuntimeError(f"{self.name} {how}: {self.last_words()}")
            time.sleep(0.05)

    def last_words(self, count: int = 6) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-count:])[-1500:]


def answers(port: int, path: str) -> bool:
    """Whether a GET gets a 200."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=3) as answer:
        return bool(answer.status == 200)
    return False
