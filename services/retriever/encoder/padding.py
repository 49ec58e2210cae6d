"""Which texts share a padded tensor: padding costs as much as text, and every call has a fixed cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallCost:
    """The cost of one encoder call, in units of the time that one token takes.

    Attributes:
        call: the fixed part.
        most: the most padded tokens per call; beyond it each token costs more. A single text may exceed it.
    """

    call: int
    most: int


def group_by_length(lengths: Sequence[int], cost: CallCost) -> list[list[int]]:
    """Split texts into groups, each padded to its longest, so that all calls together cost least.

    Args:
        lengths: tokens of each text, at least 1.
        cost: the cost of one call.

    Returns:
        Indices into `lengths`, each once; shorter texts come first.
    """
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    # cheapest[n] is the least cost of the n shortest texts; the last group of that split begins at begins[n].
    cheapest, begins = [0] * (len(order) + 1), [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        width = lengths[order[end - 1]]
        first = max(0, end - max(1, cost.most // width))
        cheapest[end], begins[end] = min(
            (cheapest[begin] + cost.call + (end - begin) * width, begin) for begin in range(first, end)
        )
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[begins[end] : end])
        end = begins[end]
    return groups[::-1]
