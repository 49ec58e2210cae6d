"""A child process ends with the one that started it, also when that is killed and cannot say so."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_VARIABLE = "RESEARCH_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def child_environment() -> dict[str, str]:
    """This process's environment, for a child that calls `end_with_parent`."""
    return {**os.environ, _VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent ends, if it asked for that; it holds over `exec`. Linux only.

    The kernel watches the thread that started this process, so a parent starts children from a thread that stays.
    """
    parent = os.environ.pop(_VARIABLE, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it ended before we asked
        os.kill(os.getpid(), signal.SIGTERM)
