"""Routing: each server its share, no more moves than needed, and an episode's turns where their prefix is cached."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.episode.agent import Sampling
from research.routing import BOUND, FREE, Load, choose, home
from tests.support.fleet import Fleet, stays

KEYS = [f"1.{number}" for number in range(3000)]
NAMES = st.lists(st.text(min_size=1), min_size=1, max_size=12, unique=True)


def owners(names: list[str], weights: list[float] | None = None) -> list[str]:
    loads = [Load(name) for name in names]
    return [home(key, loads, weights or [1.0] * len(loads)).name for key in KEYS]


@settings(max_examples=20, deadline=None)
@given(NAMES)
def test_every_server_owns_its_share_of_the_keys(names: list[str]) -> None:
    mean = len(KEYS) / len(names)
    counts = Counter(owners(names))
    assert all(abs(counts[name] - mean) < 6 * mean**0.5 for name in names)  # six standard deviations


@settings(max_examples=20, deadline=None)
@given(NAMES.filter(lambda names: len(names) > 1), st.data())
def test_a_server_that_goes_gives_away_only_its_own_keys(names: list[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(names))
    before, after = owners(names), owners([name for name in names if name != gone])
    assert all(old in (new, gone) for old, new in zip(before, after, strict=True))


def test_shares_follow_the_weights_and_only_the_changed_one_loses() -> None:
    before, after = owners(["a", "b", "c"]), owners(["a", "b", "c"], [1.0, 1.0, 0.25])
    assert Counter(after)["c"] == pytest.approx(len(KEYS) / 9, rel=0.2)
    assert all(old in (new, "c") for old, new in zip(before, after, strict=True))


def test_the_order_of_the_servers_does_not_matter() -> None:
    assert owners(["a", "b", "c"]) == owners(["c", "a", "b"])


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), min_size=2, max_size=8), st.text())
def test_none_is_given_more_than_its_bound(in_flight: list[int], key: str) -> None:
    loads = [Load(str(number), busy) for number, busy in enumerate(in_flight)]
    chosen = choose(key, loads)
    mean = (sum(in_flight) + 1) / len(loads)
    assert chosen.in_flight < max(FREE, BOUND * mean + 1)
    if chosen is not home(key, loads, [1.0] * len(loads)):
        assert chosen.in_flight == min(in_flight)


def test_it_stays_unless_overloaded_or_out_of_service() -> None:
    loads = [Load("a"), Load("b"), Load("c")]
    for load in loads:
        assert choose("key", loads, load) is load
    loads[0].in_flight = FREE - 1
    assert choose("key", loads, loads[0]) is loads[0]
    loads[0].in_flight = 100
    assert choose("key", loads, loads[0]) in loads[1:]
    assert choose("key", loads[1:], loads[0]) is choose("key", loads[1:])


def test_a_slow_server_is_given_less() -> None:
    loads = [Load("fast"), Load("slow")]
    for _ in range(30):
        loads[0].answered(100, 1.0)
        loads[1].answered(100, 3.0)
    for number in range(400):
        choose(str(number), loads).in_flight += 1
    assert loads[1].in_flight < 0.4 * loads[0].in_flight


@pytest.mark.parametrize("count", [2, 8])
def test_the_turns_of_an_episode_stay_and_a_group_begins_together(count: int) -> None:
    fleet = Fleet(count)
    groups = fleet.step(questions=256, members=5, turns=4)
    assert stays(groups) > 0.95
    assert all(len({places[0] for places in episodes}) == 1 for episodes in groups)
    assert max(server.busiest for server in fleet.servers) < 1.5 * 256 * 5 / count


def test_a_server_that_is_taken_out_moves_only_its_own_episodes() -> None:
    # So few that no server is overloaded, before or after.
    before, fleet = Fleet(4).step(16, 1, 1), Fleet(4)
    fleet.pairs[2].in_service = False
    after = fleet.step(16, 1, 1)
    moved = [(old, new) for [[old]], [[new]] in zip(before, after, strict=True) if old != new]
    assert moved
    assert all(old == 2 for old, _ in moved)
    assert all(new != 2 for [[new]] in after)


def test_an_episode_whose_server_is_taken_out_goes_on_elsewhere_and_stays_there() -> None:
    fleet = Fleet(3)

    async def scenario() -> list[int]:
        policy = fleet.replicas.of_episode("1.0")
        first = (await policy.generate([1], 9, Sampling(seed=1))).token_ids[0]
        fleet.pairs[first].in_service = False
        others = [(await policy.generate([1, turn], 9, Sampling(seed=turn))).token_ids[0] for turn in range(3)]
        fleet.pairs[first].in_service = True
        return [first, *others, (await policy.generate([1, 9], 9, Sampling(seed=9))).token_ids[0]]

    first, *others = asyncio.run(scenario())
    assert first not in others
    assert len(set(others)) == 1
