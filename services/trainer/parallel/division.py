"""Which rank computes which micro-batches."""

from __future__ import annotations

from collections.abc import Sequence


def divide(costs: Sequence[float], world: int) -> list[list[int]]:
    """Indexes of the micro-batches of each rank: the costliest first, each to the rank that has least so far (LPT).

    Ranks may have different numbers; whoever has fewer computes empty ones at the end, because all gather each layer's
    parameters together.
    """
    shares: list[list[int]] = [[] for _ in range(world)]
    loads = [0.0] * world
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min(range(world), key=lambda r: (loads[r], r))
        shares[rank].append(index)
        loads[rank] += costs[index]
    return shares


def cost(lengths: Sequence[int], hidden_size: int) -> float:
    """Work of a micro-batch, in tokens of a short sequence: attention makes a token of a long one dearer.

    Per layer, a token costs about 24 h² operations in products with weights and 2 h n in attention over n tokens.
    """
    return sum(length * (1 + length / (12 * hidden_size)) for length in lengths)
