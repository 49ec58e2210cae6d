"""Scores beyond EM and F1 (`research.scoring.reward`): cover-EM, and which supporting passages were found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from research.scoring.reward import normalize_answer


def cover_exact_match(prediction: str, gold: str) -> float:
    """1.0 if the normalized gold answer occurs in the normalized prediction as whole words (Rosset et al., 2020)."""
    wanted, words = normalize_answer(gold).split(), normalize_answer(prediction).split()
    if not wanted:
        return 0.0
    return float(any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1)))


def retrieval_recall(found: Iterable[str], supporting: Sequence[str]) -> float | None:
    """Share of the supporting titles that any search found; None if none are known."""
    if not supporting:
        return None
    titles = set(found)
    wanted = set(supporting)
    return len(wanted & titles) / len(wanted)
