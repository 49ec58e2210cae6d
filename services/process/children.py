"""What several children say and how they ended, each under its name."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import IO


def relay(said: IO[bytes], name: str) -> threading.Thread:
    """Copy what a child says to standard error, each line with the child's name before it, until the child ends.

    Returns:
        The thread that does it; it ends when nobody holds the other end of the pipe.
    """
    thread = threading.Thread(target=_relay, args=(said, f"{name} | ".encode()), name=f"{name}'s log", daemon=True)
    thread.start()
    return thread


def _relay(said: IO[bytes], prefix: bytes) -> None:
    with said:
        for line in said:
            # Nobody may read our own output any more; a child whose pipe is full would stop.
            with suppress(OSError):
                # Not through sys.stderr: a thread that holds its lock may outlast the interpreter.
                os.write(sys.stderr.fileno(), prefix + line.rstrip(b"\n") + b"\n")


def how_it_ended(code: int) -> str:
    """The exit code of `subprocess` in words."""
    return f"ended with code {code}" if code >= 0 else f"ended by signal {-code}"
