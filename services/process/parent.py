"""Children end with their parent, even if it is killed and cannot signal them. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Collection

_VARIABLE = "RESEARCH_PARENT_PID"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def child_environment(names: Collection[str] | None = None) -> dict[str, str]:
    """This process's environment, or so much of it, for a child that calls `end_with_parent`."""
    given = {name: value for name, value in os.environ.items() if names is None or name in names}
    return given | {_VARIABLE: str(os.getpid())}


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send a signal when the parent ends, if the parent asked for that; this survives `exec`.

    The kernel watches the thread that started this process, so a parent must start children from a thread that stays.
    """
    parent = os.environ.pop(_VARIABLE, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != int(parent):  # it ended before we asked
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Become the parent of the processes that killed children leave behind, so that this process can end them."""
    if sys.platform.startswith("linux"):
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
