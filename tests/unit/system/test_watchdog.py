"""What hangs is killed with its process group and the reason; what is slow to start, or well, is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from services.process import watchdog as watchdog_module
from services.process.watchdog import Watchdog
from services.web.ports import require_free_port

SECONDS = 120
# A service with a child of its own; `/livez` answers what the second argument says.
SERVICE = """
import http.server, subprocess, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2]))
        self.end_headers()
        self.wfile.write(b"the engine has not answered")
        print("asked", flush=True)

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer)
print(child.pid, flush=True)
server.serve_forever()
"""


@contextmanager
def service(port: int, status: int = 200) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """The process, and the child that it has started."""
    arguments = [sys.executable, "-c", SERVICE, str(port), str(status)]
    with subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as it:
        try:
            assert it.stdout is not None
            yield it, psutil.Process(int(it.stdout.readline()))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(it.pid, signal.SIGKILL)


def watched(
    process: subprocess.Popen[bytes], port: int, say: Callable[[str], None], *, start: float, interval: float = 0.2
) -> Watchdog:
    watchdog = Watchdog(process, f"http://127.0.0.1:{port}", say, interval=interval, start=start)
    watchdog.start()
    return watchdog


def test_a_stopped_process_is_killed_with_its_children(said: list[str], free_port: Callable[[], int]) -> None:
    port = free_port()
    with service(port) as (process, child):
        watchdog = watched(process, port, said.append, start=SECONDS, interval=0.5)
        assert process.stdout is not None
        assert process.stdout.readline() == b"asked\n"
        assert not said
        process.send_signal(signal.SIGSTOP)
        assert process.wait(SECONDS) == -signal.SIGKILL
        child.wait(SECONDS)
        watchdog.join(SECONDS)
    assert len(said) == 1
    assert f"hangs: http://127.0.0.1:{port}/livez does not answer" in said[0]
    require_free_port("127.0.0.1", port, "policy.port")


def test_what_says_that_it_is_stuck_is_killed_with_its_words(
    said: list[str], free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An answer that is late has no words, so each has its time.
    monkeypatch.setattr(watchdog_module, "_FAILURES", 2)
    port = free_port()
    with service(port, 503) as (process, _):
        watched(process, port, said.append, start=SECONDS, interval=2.0)
        assert process.wait(SECONDS) == -signal.SIGKILL
    assert "hangs: " in said[0]
    assert "answers 503: the engine has not answered" in said[0]


def test_what_is_starting_has_its_time(said: list[str], free_port: Callable[[], int]) -> None:
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as process:
        watchdog = watched(process, port, said.append, start=SECONDS)
        watchdog.join(3)  # more than six questions
        assert process.poll() is None
        process.communicate(b"\n")
        watchdog.join(SECONDS)
        assert not watchdog.is_alive()
    assert not said


def test_what_never_listens_is_given_up_in_the_end(said: list[str], free_port: Callable[[], int]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as process:
        watched(process, free_port(), said.append, start=1)
        assert process.wait(SECONDS) == -signal.SIGKILL
    assert "has not started within 1 s" in said[0]


def test_what_hangs_before_its_first_answer_is_killed(said: list[str], free_port: Callable[[], int]) -> None:
    port = free_port()
    with service(port) as (process, _):
        process.send_signal(signal.SIGSTOP)  # it listens already
        watched(process, port, said.append, start=600)
        assert process.wait(SECONDS) == -signal.SIGKILL
    assert "hangs: " in said[0]


@pytest.fixture
def said() -> list[str]:
    return []
