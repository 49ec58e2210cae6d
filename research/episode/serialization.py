"""Episodes read back from JSON, exactly as they were when `orjson.dumps` wrote them."""

from __future__ import annotations

import math
from typing import Any

from research.episode.agent import BranchPoint, Episode, StopReason, Turn
from research.errors import ProtocolError
from research.passages import Passage


def episode_from_dict(record: dict[str, Any]) -> Episode:
    """The inverse of `orjson.dumps`, parsed; finite floats come back bit for bit.

    A log-probability that was not finite comes back as NaN, since JSON has neither: no such episode is trained on.

    Raises ProtocolError if fields are missing or unknown, or if the token streams differ in length.
    """
    try:
        turns = [_turn_from_dict(turn) for turn in record["turns"]]
        logprobs = [math.nan if value is None else value for value in record["logprobs"]]
        point = record.get("branched_from")  # since 2026-11
        branched_from = BranchPoint(**point) if point is not None else None
        read = {"turns": turns, "logprobs": logprobs, "branched_from": branched_from}
        episode = Episode(**{**record, **read, "stop_reason": StopReason(record["stop_reason"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"not an episode record ({error!r})") from error
    if not len(episode.token_ids) == len(episode.sampled) == len(episode.logprobs) == len(episode.versions):
        raise ProtocolError("not an episode record (its token streams differ in length)")
    return episode


def _turn_from_dict(record: dict[str, Any]) -> Turn:
    return Turn(**{**record, "passages": [Passage(**passage) for passage in record["passages"]]})
