"""One run directory, one trainer: two would remove each other's unfinished files and serve each other's weights."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from research.errors import ConfigurationError

FILE = ".lock"
# What file systems without locks say, such as Lustre mounted without them.
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})

logger = logging.getLogger(__name__)


class RunInUseError(ConfigurationError):
    """Another trainer works in the run directory."""


@contextmanager
def only_trainer(run_dir: Path) -> Iterator[None]:
    """Hold a run directory, which is created if need be; the kernel releases it even after a kill.

    In a group of processes only rank 0 holds it. The file stays: who deleted it would let two hold it.

    Raises RunInUseError, which names the other process.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / FILE).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise RunInUseError(
                f"{run_dir} is in use by {lock.read(200).strip() or 'another process'}; end that trainer, or give "
                "another name with run=…"
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            logger.warning("%s: its file system has no locks (%s), so no second trainer is noticed", run_dir, error)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def empty(run_dir: Path) -> None:
    """Delete everything that a run has left; raises RunInUseError if a trainer works there."""
    if not run_dir.exists():
        return
    with only_trainer(run_dir):
        for path in run_dir.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != FILE:
                path.unlink(missing_ok=True)
