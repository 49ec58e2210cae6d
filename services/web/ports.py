"""Checks ports before anything slow begins."""

from __future__ import annotations

import errno
import socket
import sys
import time

from research.errors import ConfigurationError

# In which a service that was told to end has ended; one that was killed needs up to a second to give back its memory,
# and keeps its port meanwhile.
_PREDECESSOR_SECONDS = 10.0


def require_free_port(host: str, port: int, setting: str) -> None:
    """Wait some seconds for a predecessor that is ending.

    Raises ConfigurationError, naming the setting, if the port cannot be listened on.
    """
    deadline, said = time.monotonic() + _PREDECESSOR_SECONDS, False
    while (error := _fault(host, port)) is not None:
        if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
            raise ConfigurationError(
                f"{setting}: cannot listen on {host}:{port} ({error.strerror}); "
                f"stop what uses it or choose another port with {setting}=…"
            ) from error
        if not said:
            most = f"{_PREDECESSOR_SECONDS:g} s"
            print(f"{setting}: {port} is in use; waiting up to {most}, in case what uses it is ending", file=sys.stderr)
        said = True
        time.sleep(0.1)


def _fault(host: str, port: int) -> OSError | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
