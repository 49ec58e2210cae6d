"""The kinds of faults, whom they befall, and what is promised of each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.faults.system.proxy import Mode, NetworkFault

PHASES = ("rollout", "update", "publish", "evaluation", "checkpoint")
POLICY, RETRIEVER, TRAINER = "policy", "retriever", "trainer"
BOTH = (POLICY, RETRIEVER)


class Promise(StrEnum):
    """What a run does."""

    GOES_ON = "goes on by itself"
    SAME_COMMAND = "ends; the same command goes on"
    NAMED = "ends and says why; the same command goes on"


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        targets: whom it befalls.
        lasts: seconds until it is healed; 0: nothing is to be healed.
        outage_timeout: seconds that the run waits for a service, if the kind needs its own.
        repeats: random injections in each phase.
    """

    name: str
    targets: tuple[str, ...]
    promise: Promise
    lasts: float = 0.0
    outage_timeout: float | None = None
    repeats: int = 1


KILL, HANG, HANG_FOR_GOOD = "SIGKILL", "SIGSTOP for a time", "SIGSTOP for good"
OTHER_WEIGHTS, OTHER_INDEX, BASE_AGAIN = "comes back with other weights", "comes back with another index", "base again"
FULL_DISK, CLOCK, MANIFEST = "full disk", "clock jumps", "spoilt index manifest"
SPOILT = {
    "spoilt checkpoint": "checkpoints",
    "spoilt journal": "journal",
    "spoilt metrics": "metrics",
    "spoilt published weights": "weights",
    "spoilt record of a step": "episodes",
}
# Long enough that the run notices and the outage is over before it gives up.
_SOME_SECONDS = 4.0

KINDS = (
    Kind(KILL, (TRAINER,), Promise.SAME_COMMAND, repeats=10),
    Kind(KILL, (RETRIEVER,), Promise.GOES_ON, repeats=10),
    Kind(KILL, (POLICY,), Promise.GOES_ON, repeats=10),
    Kind(HANG, (POLICY, RETRIEVER, TRAINER), Promise.GOES_ON, _SOME_SECONDS),
    Kind(HANG_FOR_GOOD, (TRAINER,), Promise.SAME_COMMAND),
    Kind(HANG_FOR_GOOD, BOTH, Promise.NAMED, outage_timeout=3.0),
    Kind(Mode.REFUSE, BOTH, Promise.GOES_ON, _SOME_SECONDS),
    Kind(Mode.BLACK_HOLE, BOTH, Promise.GOES_ON, _SOME_SECONDS),
    Kind(Mode.CUT, BOTH, Promise.GOES_ON, _SOME_SECONDS),
    Kind(Mode.DRIP, BOTH, Promise.GOES_ON, _SOME_SECONDS),
    Kind("429", BOTH, Promise.GOES_ON, _SOME_SECONDS),
    Kind("500", BOTH, Promise.GOES_ON, _SOME_SECONDS),
    Kind("503", BOTH, Promise.GOES_ON, _SOME_SECONDS),
    Kind(Mode.NONSENSE, BOTH, Promise.GOES_ON, _SOME_SECONDS),
    Kind(Mode.DELAY, BOTH, Promise.GOES_ON, _SOME_SECONDS),
    Kind(OTHER_WEIGHTS, (POLICY,), Promise.GOES_ON),
    Kind(OTHER_INDEX, (RETRIEVER,), Promise.NAMED, _SOME_SECONDS, outage_timeout=3.0),
    Kind(MANIFEST, (RETRIEVER,), Promise.GOES_ON, _SOME_SECONDS),
    Kind(FULL_DISK, (TRAINER,), Promise.NAMED),
    *(Kind(name, (TRAINER,), Promise.SAME_COMMAND) for name in SPOILT),
    Kind(CLOCK, (TRAINER,), Promise.GOES_ON),
)


def is_told_by_requests(name: str) -> bool:
    """Whether the proxy counts the requests that such a fault changed; a connection that it refuses is none."""
    return network_fault(name, 0) is not None and name != Mode.REFUSE


def network_fault(name: str, number: int) -> NetworkFault | None:
    """What the proxy does for a kind; `number` varies it."""
    if name.isdigit():
        return NetworkFault(Mode.STATUS, status=int(name))
    if name in list(Mode):
        return NetworkFault(Mode(name), seconds=1.0 + number % 3, variant=number)
    return None
