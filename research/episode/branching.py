"""Branches: episodes that go on from a result of another, whose tokens up to there they copy."""

from __future__ import annotations

from itertools import pairwise

from research.episode.agent import BranchPoint, Episode


def branch_points(episode: Episode, member: int) -> list[BranchPoint]:
    """Where a finished episode can be branched from: the end of each result that the model saw.

    Args:
        member: the place of the episode in its group.
    """
    ends = [after for after, (before, now) in enumerate(pairwise(episode.sampled), 1) if now and not before]
    return [BranchPoint(member, turn, end) for turn, end in enumerate(ends)]


def branch(root: Episode, point: BranchPoint) -> Episode:
    """The beginning of an episode that goes on from a point of another, which stays as it is."""
    end = point.tokens
    return Episode(
        question=root.question,
        prompt_ids=root.prompt_ids,
        token_ids=root.token_ids[:end],
        sampled=root.sampled[:end],
        logprobs=root.logprobs[:end],
        versions=root.versions[:end],
        turns=root.turns[: point.turn + 1],
        branched_from=point,
        form=root.form,
    )


def is_branch_of(episode: Episode, root: Episode, member: int) -> bool:
    """Whether an episode begins as a branch of `root`, the episode at place `member` of its group."""
    point = episode.branched_from
    return point is not None and point.member == member and _begins_alike(episode, root, point.tokens)


def _begins_alike(one: Episode, other: Episode, tokens: int) -> bool:
    return one.token_ids[:tokens] == other.token_ids[:tokens] and one.versions[:tokens] == other.versions[:tokens]
