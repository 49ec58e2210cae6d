"""A pytest plugin that says which test files cost how much of the processors, their services included.

Seconds of the wall say little where four lanes share two cores. What a service has used counts once it has ended, so
one that several files share counts for the last of them.
"""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Generator
from multiprocessing import forkserver

import psutil
import pytest

_SHOWN = 20
_seconds: defaultdict[str, float] = defaultdict(float)


def _used() -> float:
    """CPU seconds of this process and of all its children that have ended, and of theirs."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime + _forked()


def _forked() -> float:
    """The same of what `multiprocessing` forks from, which is no child that has ended."""
    if (pid := forkserver._forkserver._forkserver_pid) is None:  # type: ignore[attr-defined]
        return 0.0
    return sum(psutil.Process(pid).cpu_times()[:4])  # its own and its children's, user and system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    before = _used()
    try:
        return (yield)
    finally:
        _seconds[item.nodeid.split("::")[0]] += _used() - before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section(f"{_used():.0f} s of CPU, by file")
    for path, seconds in sorted(_seconds.items(), key=lambda item: -item[1])[:_SHOWN]:
        terminalreporter.write_line(f"{seconds:7.1f}s {path}")
