"""Which texts share a padded tensor: padding is computed like text, and every call has its price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallCost:
    """What a call of an encoder costs, in the time that one token takes.

    Attributes:
        call: the fixed part.
        most: padded tokens of a call at most, beyond which each token costs more; one text alone may have more.
    """

    call: int
    most: int


def group_by_length(lengths: Sequence[int], cost: CallCost) -> list[list[int]]:
    """Split texts into groups, each padded to its longest, so that all calls together cost least.

    Args:
        lengths: tokens of each text, at least 1.
        cost: of a call.

    Returns:
        Places in `lengths`, each once; shorter texts come first.
    """
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    # cheapest[n] pays for the n shortest texts; the last group of that way begins at begins[n].
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
