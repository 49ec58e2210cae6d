"""The rule for branches: against the authors' code in float64, and what must hold of any such rule."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.episode.agent import BranchPoint
from services.trainer.groups import Group
from services.trainer.learner.advantages import compute_advantages
from services.trainer.learner.estimators import group_advantages, leave_one_out_advantages, tree_advantages
from services.trainer.model.batching import collate, sequence_of
from tests.support.scored import answered, group, member
from tests.support.tiny_model import tiny_settings

REWARDS = st.sampled_from([0.0, 0.1, 0.4, 0.5, 1.0])
MEMBERS = st.lists(st.tuples(REWARDS, st.integers(0, 3)), min_size=2, max_size=10)


def of_authors(rewards: list[float], trees: list[int]) -> list[float]:
    """`tree` of AMAP-ML/Tree-GRPO: the group's advantages plus the tree's; a tree of one is left out here."""

    def grouped(index: list[int]) -> list[float]:
        values = np.array(rewards, dtype=np.float64)
        found = []
        for reward, own in zip(values, index, strict=True):
            its = values[[other == own for other in index]]
            found.append((reward - its.mean()) / (its.std(ddof=1) + 1e-6) if len(its) > 1 else 0.0)
        return found

    return [a + b for a, b in zip(grouped([0] * len(rewards)), grouped(trees), strict=True)]


@given(MEMBERS)
def test_it_is_the_rule_of_the_authors(members: list[tuple[float, int]]) -> None:
    rewards, trees = [reward for reward, _ in members], [tree for _, tree in members]
    found = tree_advantages(rewards, trees, group_advantages)
    if len(set(rewards)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(of_authors(rewards, trees), abs=1e-9)


@given(MEMBERS, st.sampled_from([group_advantages, leave_one_out_advantages]), st.booleans())
def test_a_tree_gets_what_it_gets_in_the_group(members, rule, scaled) -> None:  # type: ignore[no-untyped-def]
    """So tokens that all of a tree share get no more and no less for its branches, and all advantages sum to zero."""
    rewards, trees = [reward for reward, _ in members], [tree for _, tree in members]
    plain = rule(rewards, scaled=scaled)
    found = tree_advantages(rewards, trees, partial(rule, scaled=scaled))
    assert (plain is None) == (found is None)
    if plain is None or found is None:
        return
    assert sum(found) == pytest.approx(0, abs=1e-9)
    for tree in set(trees):
        own = [index for index, its in enumerate(trees) if its == tree]
        assert sum(found[i] for i in own) == pytest.approx(sum(plain[i] for i in own), abs=1e-9)


@given(st.lists(REWARDS, min_size=2, max_size=10))
def test_without_branches_it_is_plain_grpo_bit_for_bit(rewards: list[float]) -> None:
    assert tree_advantages(rewards, range(len(rewards)), group_advantages) == group_advantages(rewards)


def test_branches_are_compared_with_those_of_their_tree(tmp_path: Path) -> None:
    members = group("1.0", ["Paris", "Rome", "Rome", "Rome"]).members
    for place, root in ((2, 0), (3, 1)):
        members[place].episode.branched_from = BranchPoint(root, 0, 2)
    settings = tiny_settings(tmp_path, "grpo.scale_advantages=false")
    batch = compute_advantages([Group("1.0", group("1.0", []).question, members)], [[1.0, 0, 0, 0]], settings.grpo)
    assert [use.advantage for use in batch.group_uses[0]] == pytest.approx([0.75 + 0.5, -0.25, -0.25 - 0.5, -0.25])
    # Left out, a root leaves its branch alone in its tree.
    settings = tiny_settings(tmp_path, "grpo.scale_advantages=false", "grpo.mask_truncated=true")
    kept = [*members[:2], member(answered("Rome"), 2), members[3]]
    kept[2].episode.branched_from = BranchPoint(7, 0, 2)
    batch = compute_advantages([Group("1.0", group("1.0", []).question, kept)], [[1.0, 0, 0, 0]], settings.grpo)
    assert [use.advantage for use in batch.group_uses[0]] == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_what_a_tree_shares_is_computed_once_and_trained_on_in_each() -> None:
    root, grown = answered("Paris"), answered("Rome")
    grown.token_ids = [*root.token_ids[:2], 9]
    batch = collate(
        [sequence_of(root, [1.0, 1.0]), sequence_of(grown, [-0.5] * 2)], [0, 1], [1, 1], torch.device("cpu")
    )
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 9]
    assert batch.targets.tolist() == [3, 5, 3, 9]
    assert batch.positions.tolist() == [1, 3, 1, 3]
    assert batch.advantages.tolist() == [1.0, 1.0, -0.5, -0.5]
