"""When a fault begins: decided by what the run says and asks for, never by waiting for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from benchmarks.faults.kinds import RETRIEVER
from benchmarks.faults.system.services import ASKED, GROUPS, SIZE, Services

_GENERATE, _SEARCH, _WEIGHTS = "/inference/v1/generate", "/search", "/admin/weights"
_LOOK_SECONDS = 0.005
_IN_ONE_PHASE_SECONDS = 30.0
_UNTIL_PHASE_SECONDS = 300.0
_TRIES = 3


@dataclass(frozen=True)
class Met:
    """Where a fault has begun."""

    step: int
    phase: str
    request: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}" + (f", at {self.request}" if self.request else "")


def meet(services: Services, phase: str, target: str, rng: Random, begin: Callable[[], None]) -> Met:
    """Wait for a phase that has not begun, then call `begin` in it.

    In rollout and evaluation it begins as the n-th turn or search reaches the service, in publish as the new weights
    do; in update and checkpoint, in which nothing is asked for, as soon as the run says that it is there.

    Raises RuntimeError if the trainer ends before, or the phase does not come.
    """
    after, tries = services.status().get("step", 0), 0
    while True:
        step = _await_phase(services, phase, after)
        # So small a model may not search in a whole phase; then the fault begins at a turn.
        path, number = _request(phase, target if tries < _TRIES else "", rng)
        tries += 1
        if not path:
            begin()
            return Met(step, phase, "")
        reached = threading.Event()

        def now(reached: threading.Event = reached) -> None:
            begin()
            reached.set()

        proxy = services.proxies[RETRIEVER if path == _SEARCH else "policy"]
        proxy.at_request(path, number, now)
        deadline = time.monotonic() + _IN_ONE_PHASE_SECONDS
        while not reached.wait(0.05) and time.monotonic() < deadline:
            if services.status().get("phase") != phase:
                break
        proxy.forget()
        if reached.wait(0.1):
            return Met(step, phase, f"request {number} to {path}")
        after = step  # there were fewer requests in this step


def _await_phase(services: Services, phase: str, after: int) -> int:
    deadline = time.monotonic() + _UNTIL_PHASE_SECONDS
    while time.monotonic() < deadline:
        status = services.status()
        if status.get("phase") == phase and status["step"] > after:
            return int(status["step"])
        if not services.trainer.runs:
            raise RuntimeError(f"the trainer ended before {phase}: {services.trainer.last_words()}")
        time.sleep(_LOOK_SECONDS)
    raise RuntimeError(f"{phase} did not come; the run waits for {services.status().get('waiting_for')}")


def _request(phase: str, target: str, rng: Random) -> tuple[str, int]:
    if phase == "publish":
        return _WEIGHTS, 1
    if phase == "rollout":
        return (_SEARCH, rng.randint(1, 3)) if target == RETRIEVER else (_GENERATE, rng.randint(1, GROUPS * SIZE))
    if phase == "evaluation":
        return (_SEARCH, 1) if target == RETRIEVER else (_GENERATE, rng.randint(1, ASKED))
    return "", 0
