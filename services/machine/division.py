"""Divides this machine among several policy servers: its GPUs, or without any the cores of its CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence

from research.errors import ConfigurationError
from research.settings.policy import PolicyConfig

CARDS_VARIABLE = "CUDA_VISIBLE_DEVICES"


def server_environments(policy: PolicyConfig) -> list[dict[str, str]]:
    """The variables that give each policy server its part of this machine, in the order of `policy.ports`.

    A single server gets none: it may use the whole machine.

    Raises:
        ConfigurationError: the machine has too few GPUs or cores.
    """
    return divided(policy, visible_cards(), usable_cores()) if policy.replicas > 1 else [{}]


def divided(policy: PolicyConfig, cards: Sequence[str], cores: int) -> list[dict[str, str]]:
    """As `server_environments`, on a machine with these GPUs and this many cores."""
    size = policy.tensor_parallel_size
    needed = policy.replicas * (size if cards else policy.threads)
    if cards and needed > len(cards):
        raise ConfigurationError(
            f"policy.replicas = {policy.replicas} with policy.tensor_parallel_size = {size} needs {needed} GPUs, and "
            f"{len(cards)} can be used here ({CARDS_VARIABLE}); lower one of the two"
        )
    if not cards and needed > cores:
        raise ConfigurationError(
            f"policy.replicas = {policy.replicas} with policy.threads = {policy.threads} needs {needed} CPU cores, and "
            f"{cores} can be used here; lower one of the two"
        )
    if not cards:
        return [{} for _ in policy.ports]
    # The last ones: a trainer and a retriever on the same machine take the first.
    taken = cards[-needed:]
    return [{CARDS_VARIABLE: ",".join(taken[first : first + size])} for first in range(0, needed, size)]


def visible_cards() -> list[str]:
    """The GPUs that CUDA lets this process use, by index or identifier."""
    import torch  # takes seconds, and a single policy server does not ask

    count = torch.cuda.device_count()
    named = os.environ.get(CARDS_VARIABLE)
    return [card.strip() for card in named.split(",")][:count] if named else [str(card) for card in range(count)]


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
