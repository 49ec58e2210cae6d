"""What a simulated run is made of: how fast its machines are, and how the trainer uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ServerRates:
    """A policy server (vLLM).

    Attributes:
        iteration: seconds of an iteration of the engine that decodes, whatever it decodes: it reads the weights.
        per_sequence: seconds that each running sequence adds to it, by its keys and values and its products.
        prefill: seconds per prompt token that is not cached; nothing is decoded meanwhile.
        sequences: most that run together (`policy.max_num_seqs`).
        kv_tokens: tokens whose keys and values fit, of running sequences and of the prefix cache.
        block: the prefix cache holds whole blocks of so many tokens.
    """

    iteration: float
    per_sequence: float
    prefill: float
    sequences: int
    kv_tokens: int
    block: int

    def decoding(self, running: int) -> float:
        """Seconds until each of `running` sequences has one more token."""
        return self.iteration + self.per_sequence * running


@dataclass(frozen=True, slots=True)
class LearnerRates:
    """The learner, all its processes together.

    Attributes:
        token: seconds per token of an update.
        quantum: tokens are computed in multiples of it: a micro-batch on each process.
        publish: seconds from the end of an update until all policy servers have its weights.
        pause: the last of these seconds, in which servers that have requests stand still.
        checkpoint: seconds; every `checkpoint_interval` steps.
    """

    token: float
    quantum: int
    publish: float
    pause: float
    checkpoint: float
    checkpoint_interval: int

    def update(self, tokens: float) -> float:
        """Seconds of an update on `tokens`."""
        return self.token * self.quantum * -(-tokens // self.quantum)


@dataclass(frozen=True, slots=True)
class Machines:
    """All that a run computes on.

    Attributes:
        servers: policy servers of equal speed.
        searches_per_second: that the retriever answers at most.
        search: seconds that a search takes besides waiting for others; None: what its turn says.
        coordination: seconds of the trainer's event loop per turn of an episode.
        shared: learner and servers compute on the same cores: each has half of them while both work.
    """

    server: ServerRates
    servers: int
    learner: LearnerRates
    searches_per_second: float
    search: float | None
    coordination: float
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Conduct:
    """How the trainer uses its machines: what is compared.

    Attributes:
        questions: groups per step.
        staleness: updates that the weights of a trained episode's first token may lag behind; 0 is strictly on-policy.
        turn_barrier: all episodes of a step wait for each other before and after each search.
        refill: up to `refill` times a step's questions are drawn again for groups without signal.
        routing: `sticky`: an episode stays on its server, and groups begin together; `random`: each turn anywhere.
        keep_kv: servers keep keys and values when weights change under running requests; else they compute them anew.
        at_once: most episodes under way per policy server; others wait before their first turn. None: no limit.
    """

    questions: int
    staleness: int = 0
    turn_barrier: bool = False
    refill: int = 0
    routing: Literal["sticky", "random"] = "sticky"
    keep_kv: bool = True
    at_once: int | None = None

    def __post_init__(self) -> None:
        if self.turn_barrier and (self.staleness or self.at_once):
            raise ValueError("a barrier per turn holds all episodes of one step: it allows no staleness and no at_once")
