"""Which of several servers a request goes to: always the same for one key, unless that one has too much to do.

Rendezvous hashing with weights, and bounded load (docs/adr/081): each key ranks the servers by a hash of both, so a
server that goes gives away only its own keys, and one that comes takes its share from all alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# A server is overloaded above this multiple of its share of all requests in flight…
BOUND = 1.25
# …but never with so few: they wait for nobody, and one that moves has its prefix computed anew.
FREE = 8
# Servers within this factor of the mean are equally fast: what differs less is chance, and a key should not move by it.
_ALIKE = 1.5
# A server counts at most so many times more or less than the mean.
_MOST_UNEQUAL = 4.0
# Of so many answers the speed of a server is a moving mean, and before it has given as many it is not compared.
_ANSWERS = 30


@dataclass(slots=True, eq=False)
class Load:
    """What a server does: `name` tells it from the others, `in_flight` counts its requests.

    `amount` and `seconds` are of an answer of late, moving means; the amount is in any unit that is the same for all.
    """

    name: str
    in_flight: int = 0
    answers: int = 0
    amount: float = 0.0
    seconds: float = 0.0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as in flight."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def answered(self, amount: float, seconds: float) -> None:
        """Learn from an answer how fast the server is."""
        self.answers += 1
        newest = 1 / min(self.answers, _ANSWERS)
        self.amount += newest * (amount - self.amount)
        self.seconds += newest * (seconds - self.seconds)


def choose(key: str, loads: Sequence[Load], stay: Load | None = None) -> Load:
    """The server for a request: `stay`, or else the one that the key belongs to; the least loaded if it is overloaded.

    Args:
        loads: the servers in service, at least one.
        stay: where what the request needs is already; it does not count if it is not in service.
    """
    weights = _weights(loads)
    if stay is None or stay not in loads:
        stay = home(key, loads, weights)
    share = weights[loads.index(stay)] / sum(weights)
    most = BOUND * share * (1 + sum(load.in_flight for load in loads))
    if stay.in_flight < max(FREE, math.ceil(most)):
        return stay
    return min(zip(loads, weights, strict=True), key=lambda pair: pair[0].in_flight / pair[1])[0]


def home(key: str, loads: Sequence[Load], weights: Sequence[float]) -> Load:
    """The server that a key belongs to; each owns a share of all keys in proportion to its weight."""
    return max(zip(loads, weights, strict=True), key=lambda pair: -pair[1] / math.log(_uniform(key, pair[0].name)))[0]


def _weights(loads: Sequence[Load]) -> list[float]:
    """How fast each server answers, over the mean; 1 for one that is about as fast, or has not answered often yet."""
    speeds = [load.amount / load.seconds if load.answers >= _ANSWERS and load.seconds else 0.0 for load in loads]
    known = [speed for speed in speeds if speed]
    mean = sum(known) / len(known) if known else 1.0
    return [_weight(speed / mean) if speed else 1.0 for speed in speeds]


def _weight(speed: float) -> float:
    """Of a server that is so many times as fast as the mean."""
    if 1 / _ALIKE < speed < _ALIKE:
        return 1.0
    return min(max(speed, 1 / _MOST_UNEQUAL), _MOST_UNEQUAL)


def _uniform(key: str, name: str) -> float:
    """A number in (0, 1) that depends on key and server alone."""
    digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) + 0.5) / 2**64
