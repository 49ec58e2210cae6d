"""Signs over many episodes that a policy decays, or what it lacks, before its reward says so."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TypedDict, cast

from research.episode.agent import Episode
from research.episode.search_analysis import served_all
from research.questions import Question
from research.scoring.reward import Score
from research.scoring.thoughts import avoids_answer, is_thoughtless, plans, repeated_queries, repeated_share

Row = tuple[Question, Episode, Score]


class Signs(TypedDict, total=False):
    """Means and shares, all from 0 to 1; a share of nothing is absent.

    `repetition`: of an episode's runs of four words, those that it wrote before (the mean over episodes).
    `empty_thoughts`: of the turns, those that think less than three words. `unanswered`: of the episodes, those that
    the model ended by itself without an answer. `searched`: those with a search; of them, `planned`: those with a
    thought before the first. `repeated_queries`: of the searches, those whose query their episode had asked before.
    `found`: of the episodes whose question names supporting passages, those that were served one of each title; of
    these, `read`: those that were right (exact match).
    """

    repetition: float
    empty_thoughts: float
    unanswered: float
    searched: float
    planned: float
    repeated_queries: float
    found: float
    read: float


def signs_of(rows: Sequence[Row]) -> Signs:
    """The signs of some scored episodes."""
    episodes = [episode for _, episode, _ in rows]
    planned = [planned for episode in episodes if (planned := plans(episode)) is not None]
    served = [(all_of_them, score.em == 1) for q, e, score in rows if (all_of_them := served_all(e, q)) is not None]
    asked_again = sum(map(repeated_queries, episodes))
    shares: dict[str, Sequence[float]] = {
        "repetition": [repeated_share(episode) for episode in episodes],
        "empty_thoughts": [is_thoughtless(episode, turn) for episode in episodes for turn in episode.turns],
        "unanswered": [avoids_answer(episode) for episode in episodes],
        "searched": [episode.searches > 0 for episode in episodes],
        "planned": planned,
        "found": [found for found, _ in served],
        "read": [right for found, right in served if found],
    }
    signs = cast(Signs, {name: fmean(values) for name, values in shares.items() if values})
    if searches := sum(episode.searches for episode in episodes):
        signs["repeated_queries"] = asked_again / searches
    return signs
