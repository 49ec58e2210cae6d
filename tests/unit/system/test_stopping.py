"""Signals end a command in time, with the right code and a word, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from services.process import stopping

GRACE = 1.5


@contextmanager
def started(
    kind: str, grace: float = 30.0, *, ignored: tuple[signal.Signals, ...] = ()
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The child, once it works, and its first line.

    It ignores the signals in `ignored` at its start, and no others, whatever these tests themselves were started under.
    """
    former = {
        number: signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP)
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stopping_child", kind, str(grace)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kind", ["deaf", "anyio_worker", "cleaning_up"])
def test_one_signal_ends_it_in_order(kind: str, number: signal.Signals) -> None:
    with started(kind) as (process, _):
        process.send_signal(number)
        out, err = process.communicate(timeout=25)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == "stopped: all of it is kept"
    assert ("cleaned up" in out) == (kind == "cleaning_up")


def test_sigint_is_heard_where_the_parent_ignores_it_as_a_shell_does_for_a_job_in_the_background() -> None:
    with started("anyio_worker", ignored=(signal.SIGINT,)) as (process, _):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=25)
    assert process.returncode == 130


def test_sighup_stays_ignored_under_nohup() -> None:
    with started("cleaning_up", ignored=(signal.SIGHUP,)) as (process, _):
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=25)
    assert process.returncode == 143


def test_what_does_not_end_is_ended_when_the_grace_is_over() -> None:
    with started("blocked", GRACE) as (process, _):
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=25)
        assert time.monotonic() - sent >= GRACE
    assert process.returncode == 143
    assert err.strip() == "stopped: all of it is kept (what did not end in time was killed)"


def test_a_second_signal_ends_it_at_once_and_its_children_with_it() -> None:
    with started("child") as (process, _):
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3.0)  # a wish within half a second of the first is the same one
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=25)
    assert process.returncode == 130
    assert "at once, because of a second signal" in err
    assert not _lives(pid)


def test_a_wish_that_comes_twice_at_the_same_moment_is_one_wish() -> None:
    with started("cleaning_up") as (process, _):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=25)
    assert process.returncode == 143
    assert "cleaned up" in out


def test_the_limits_keep_the_promise_of_ten_seconds() -> None:
    """Those of the process itself: how long a busy machine takes to run it is no matter of ours."""
    assert stopping.GRACE_SECONDS + stopping._NOTE_SECONDS < 10


def test_giving_up_tells_its_reason_instead() -> None:
    with started("giving_up") as (process, _):
        _, err = process.communicate(timeout=25)
    assert process.returncode == 2
    assert err.strip() == "a service died five times"


def _lives(pid: int) -> bool:
    """A process that nobody has reaped yet has ended all the same."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
