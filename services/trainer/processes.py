"""Starts a trainer in several processes, and makes all but the first follow."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from research.errors import ResearchError, TrainingError
from research.settings import Settings
from services.process.parent import child_environment, end_with_parent
from services.trainer.learner.learner import device_type
from services.trainer.learner.team import follow, load_together
from services.trainer.parallel.ranks import OWN_STORE, Ranks

logger = logging.getLogger(__name__)

# What rank 0 says last, in place of a run's settings.
_ENDED, _FAILED = b"", b"failed"


def start_processes(settings: Settings) -> None:
    """With `trainer.processes` above 1, replace this process by torchrun, which starts this command that often.

    Does nothing in a process that torchrun has started, here or on many hosts (`torchrun … -m cli.main train …`).
    """
    if "WORLD_SIZE" in os.environ:
        end_with_parent()
    elif settings.trainer.processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={settings.trainer.processes}"]
        sys.stdout.flush()
        environment = child_environment() | {OWN_STORE: "1"}
        os.execve(sys.executable, [sys.executable, *torchrun, "-m", "cli.main", *sys.argv[1:]], environment)


@contextmanager
def leading(settings: Settings) -> Iterator[Ranks | None]:
    """Join the other processes; yields the ranks to lead, or None in a process that followed until its leader ended."""
    ranks = Ranks.join(device_type(settings.trainer.device), settings.trainer.replicate_hosts)
    if not ranks.leads:
        _follow_runs(ranks)
        yield None
        return
    last_word = _FAILED
    try:
        yield ranks
        last_word = _ENDED
    finally:
        # The others may be gone already: Ctrl-C reaches all.
        with suppress(RuntimeError):
            if not ranks.is_alone:
                ranks.tell(last_word)
                with suppress(RuntimeError):
                    ranks.confirm_end()
                ranks.leave()


def _follow_runs(ranks: Ranks) -> None:
    """Take part in each run that rank 0 begins, until it ends.

    Raises TrainingError if rank 0 fails: torchrun on another host starts again only what ends with an error.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # there is nothing to keep, and Python's handlers would wait for an order
    text = _next_run(ranks)
    while text not in (_ENDED, _FAILED):
        told = _follow_run(Settings.model_validate_json(text), ranks)
        text = _next_run(ranks) if told is None else told
    with suppress(RuntimeError):  # rank 0 has waited long enough
        ranks.confirm_end()
    ranks.leave()
    if text == _FAILED:
        raise TrainingError("rank 0 ended before the run did; its log says why")


def _follow_run(settings: Settings, ranks: Ranks) -> bytes | None:
    """Take part in a run; returns what rank 0 said after it without ending it (`follow`)."""
    try:
        learner = load_together(settings, ranks)
    except Exception as error:  # whatever it is, rank 0 has an error, too, and decides
        logger.warning(
            "rank %d could not load the model: %s", ranks.rank, error, exc_info=not isinstance(error, ResearchError)
        )
        return None
    logger.info("rank %d of %d follows", ranks.rank, ranks.world)
    return follow(learner, ranks)


def _next_run(ranks: Ranks) -> bytes:
    with ranks.naming_the_lost("wait for a run"):
        return ranks.tell(None)
