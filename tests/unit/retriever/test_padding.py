"""Groups of texts for the encoder against trying every way to cut them."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retriever.encoder.padding import CallCost, group_by_length

LENGTHS = st.lists(st.integers(1, 40), max_size=9)
COSTS = st.builds(CallCost, call=st.integers(0, 50), most=st.integers(1, 120))


def price(groups: list[list[int]], lengths: list[int], cost: CallCost) -> int:
    return sum(cost.call + len(group) * max(lengths[place] for place in group) for group in groups)


def allowed(group: list[int], lengths: list[int], cost: CallCost) -> bool:
    return len(group) == 1 or len(group) * max(lengths[place] for place in group) <= cost.most


@given(LENGTHS, COSTS)
def test_no_other_cut_is_cheaper(lengths: list[int], cost: CallCost) -> None:
    groups = group_by_length(lengths, cost)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    assert all(allowed(group, lengths, cost) for group in groups)
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    every_cut = [
        [order[begin:end] for begin, end in pairwise([0, *inner, len(order)])]
        for count in range(len(order))
        for inner in combinations(range(1, len(order)), count)
    ]
    prices = [price(cut, lengths, cost) for cut in every_cut if all(allowed(group, lengths, cost) for group in cut)]
    assert price(groups, lengths, cost) == min(prices, default=0)


@pytest.mark.parametrize(
    ("lengths", "cost", "expected"),
    [
        ([], CallCost(9, 384), []),
        ([10, 10, 10], CallCost(9, 384), [[0, 1, 2]]),
        ([10, 40, 10], CallCost(9, 384), [[0, 2], [1]]),
        ([10, 12, 10], CallCost(9, 384), [[0, 2, 1]]),
        ([500, 500], CallCost(9, 384), [[0], [1]]),
    ],
)
def test_texts_share_a_call_while_padding_is_cheaper(
    lengths: list[int], cost: CallCost, expected: list[list[int]]
) -> None:
    assert group_by_length(lengths, cost) == expected
