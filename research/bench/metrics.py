"""Scores beyond those of answers (`research.scoring.reward`): which supporting passages were found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def retrieval_recall(found: Iterable[str], supporting: Sequence[str]) -> float | None:
    """Share of the supporting titles that any search found; None if none are known."""
    if not supporting:
        return None
    titles = set(found)
    wanted = set(supporting)
    return len(wanted & titles) / len(wanted)
