"""From credits of turns to advantages of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from statistics import fmean


def turn_advantages(credits: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each turn's credit minus the mean of the turns with its number in the group.

    A turn that only one member of the group came to has nothing to be compared with but having ended, which is worth 0.
    The turns of a group of one have nothing at all, and get 0.

    Args:
        credits: of each turn of each member of a group.
    """
    if len(credits) < 2:
        return [[0.0] * len(own) for own in credits]
    at_turn = zip_longest(*credits)
    baselines = [_baseline([credit for credit in column if credit is not None]) for column in at_turn]
    return [[credit - baselines[number] for number, credit in enumerate(own)] for own in credits]


def _baseline(credits: Sequence[float]) -> float:
    return fmean(credits) if len(credits) > 1 else 0.0


def turn_of_tokens(sampled: Sequence[bool]) -> list[int]:
    """The turn of each sampled token: what was sampled between two results.

    Args:
        sampled: whether the model wrote a token, for the tokens after the prompt; a result is between any two turns.
    """
    turns, number, before = [], 0, True
    for own in sampled:
        number += own and not before
        if own:
            turns.append(number)
        before = own
    return turns


def token_advantages(sampled: Sequence[bool], of_episode: float, of_turns: Sequence[float | None]) -> list[float]:
    """The advantage of each sampled token: its episode's plus its turn's; 0 in a turn whose own is None."""
    own = (of_turns[turn] for turn in turn_of_tokens(sampled))
    return [0.0 if credit is None else of_episode + credit for credit in own]
