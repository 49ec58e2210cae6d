"""One service, watched: for a container, where something restarts what has ended but not what hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from research.settings import Settings
from services.process import stopping
from services.process.parent import child_environment
from services.process.watchdog import Watchdog
from services.system.programs import Service, programs_of

# Less than `stopping.GRACE_SECONDS`, and more than each service takes by itself.
_STOP_SECONDS = 8.0


def serve_watched(service: Service, arguments: Sequence[str], settings: Settings) -> NoReturn:
    """Run a service as a child, and exit with its code when it has ended, or has been killed because it hangs.

    Args:
        arguments: the command line's settings, passed on to the child.

    Raises:
        ConfigurationError: the machine has too few GPUs or cores for `policy.replicas`.
        Stopped: a signal asked for it; the child has ended in order.
    """
    urls = [program.url for program in programs_of([service], settings)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", service, *arguments],
        env=child_environment(),
        start_new_session=True,
    )

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    for url in urls:
        Watchdog(process, url, lambda why: print(f"watchdog: the {service} {why}", file=sys.stderr, flush=True)).start()
    with stopping.killing(kill), stopping.keeping(lambda: f"the {service} has ended"):
        try:
            code = process.wait()
        except stopping.Stopped:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            kill()
            raise
    kill()  # what a dead child left behind
    sys.exit(code if code >= 0 else 128 - code)
