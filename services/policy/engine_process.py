"""How vLLM's engine gets its process: on a CPU it is forked from the server, which has imported everything already.

vLLM's server spawns it, since a fork finds the threads of OpenMP gone that its parent had started. Ours computes
nothing on more than one thread before it starts the engine, so none are missed; a new process would import torch and
vLLM once more, which is more than a third of a start.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
from contextlib import suppress
from multiprocessing.context import ForkContext, ForkProcess

from vllm.v1.engine import utils

logger = logging.getLogger(__name__)


def fork_engine(port: int) -> None:
    """Have vLLM fork its engine; `port` is the server's, which the engine must not keep open."""
    if not hasattr(utils, "get_mp_context"):
        logger.warning("this vLLM chooses elsewhere how its engine is started; it is not forked, and starts later")
        return

    class EngineProcess(ForkProcess):
        """An engine that leaves the server's port to the server, and keeps its own signals to itself."""

        def run(self) -> None:
            signal.set_wakeup_fd(-1)  # inherited, it would wake the server's loop
            _give_up_port(port)  # a successor of the server must be able to take it
            super().run()

    class EngineContext(ForkContext):
        Process = EngineProcess

    utils.get_mp_context = lambda: EngineContext()


def _give_up_port(port: int) -> None:
    """Replace what is bound to the port by nothing; the numbers stay taken, because inherited objects close them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            number = int(name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as ours:
                bound = ours.family in (socket.AF_INET, socket.AF_INET6) and ours.getsockname()[1] == port
            if bound:
                os.dup2(nothing, number)
    os.close(nothing)
