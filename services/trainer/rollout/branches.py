"""Branching: the last members of a group go on from a search result of one that is finished, as in Tree-GRPO.

Each tree gets as many branches as the others, give or take one. Only the result is chosen by chance: by a seed that
follows from the place in the run, so that a resumed run chooses the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from research.episode.agent import Episode
from research.episode.branching import branch, branch_points, is_branch_of
from services.trainer.groups import Member

Start = Callable[[], Episode | None]  # what an episode goes on from, made anew at each call; None: its prompt


def root_of(place: int, size: int, branches: int) -> int | None:
    """The place of the member that this one grows from, in a group of `size`; None for a root."""
    roots = size - branches
    return (place - roots) % roots if place >= roots else None


def start_of(root: Member | None, seed: str) -> Start:
    """Where a member begins: at the end of a result of its root, or with the prompt if there is none."""
    points = branch_points(root.episode, root.place) if root is not None else []
    if root is None or not points:
        return lambda: None
    return partial(branch, root.episode, random.Random(f"branch/{seed}").choice(points))


def fits(episode: Episode, root: Member | None) -> bool:
    """Whether a recorded episode may be the member that grows from this root."""
    if episode.branched_from is None:
        return True  # it began with the prompt, since its root had no result
    return root is not None and is_branch_of(episode, root.episode, root.place)
