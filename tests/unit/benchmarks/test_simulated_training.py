"""Simulated runs against sums that are worked out by hand, and against what must hold of any run."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from apps.plan.estimate import Assumptions, Fleet, plan
from apps.plan.shapes import shape_of
from benchmarks.simulation.machines import Surroundings, gpu_machines
from benchmarks.simulation.outcome import Outcome
from benchmarks.simulation.settings import Conduct, LearnerRates, Machines, ServerRates
from benchmarks.simulation.training import simulate
from benchmarks.simulation.workload import EpisodeShape, GroupShape, StatedShape, TurnShape, drawn
from research.config import load_settings

SERVER = ServerRates(iteration=0.5, per_sequence=0.25, prefill=0.125, sequences=64, kv_tokens=10**6, block=1)
LEARNER = LearnerRates(token=0.1, quantum=1, publish=3.0, pause=1.0, checkpoint=7.0, checkpoint_interval=1000)
MACHINES = Machines(SERVER, 1, LEARNER, searches_per_second=math.inf, search=None, coordination=0.0)
# 8 tokens of prompt, 10 sampled, a search of 2 s with 6 tokens, 4 sampled: 8 prefilled, then 6 beside those cached.
EPISODE = EpisodeShape(8, (TurnShape(10, 2.0, 6), TurnShape(4)))
ROLLOUT = 8 * 0.125 + 10 * 0.75 + 2 + 6 * 0.125 + 4 * 0.75
GROUP = GroupShape((EPISODE,), 40)
# 15 s of sampling and 10 of learning, where a sequence gains nothing from others beside it.
LONG = GroupShape((EpisodeShape(0, (TurnShape(20),)),), 100)
UNBATCHED = replace(MACHINES, server=replace(SERVER, iteration=0.0, per_sequence=0.75))
MIXED = StatedShape(40, 60, 2, 30, 0.6, 0.1, 400, 0.5, 4)


def same(group: GroupShape = GROUP) -> Iterator[GroupShape]:
    return itertools.repeat(group)


def mixed(conduct: Conduct, machines: Machines = MACHINES, *, seed: int = 1, steps: int = 12) -> Outcome:
    chance = random.Random(seed)
    groups = drawn(MIXED.groups(200, chance), chance)
    return simulate(machines, conduct, groups, steps, warming=1 + conduct.staleness, seed=seed)


def test_a_step_on_policy_is_the_sum_of_its_phases() -> None:
    made = simulate(MACHINES, Conduct(1), same(), 3)
    assert made.steps == pytest.approx([ROLLOUT + 4 + 3] * 3)
    assert made.learner == pytest.approx(4 / (ROLLOUT + 7))
    assert made.policy == pytest.approx((ROLLOUT - 2) / (ROLLOUT + 7))
    assert made.staleness == {0: 1.0}


def test_a_checkpoint_holds_up_the_next_step_on_policy() -> None:
    machines = replace(MACHINES, learner=replace(LEARNER, checkpoint_interval=2))
    steps = simulate(machines, Conduct(1), same(), 4).steps
    assert steps == pytest.approx([ROLLOUT + 7, ROLLOUT + 14] * 2)


def test_an_update_is_computed_in_whole_micro_batches_of_all_processes() -> None:
    machines = replace(MACHINES, learner=replace(LEARNER, quantum=32))
    assert simulate(machines, Conduct(1), same(), 1).median == pytest.approx(ROLLOUT + 6.4 + 3)


@pytest.mark.parametrize(("update", "step"), [(30.0, 30 + 3), (4.0, 15 + 1)])
def test_one_step_off_takes_as_long_as_the_slower_side(update: float, step: float) -> None:
    """The learner's update and publishing, or the rollout and the pause in which servers exchange weights."""
    machines = replace(UNBATCHED, learner=replace(LEARNER, token=update / 100))
    made = simulate(machines, Conduct(1, staleness=1), same(LONG), 6, warming=3)
    assert 3600 / made.per_hour == pytest.approx(step, rel=0.01)
    assert made.staleness == {1: 1.0}


def test_sharing_cores_by_halves_gets_no_work_done_faster() -> None:
    shared = replace(UNBATCHED, shared=True)
    apart, beside = (simulate(shared, Conduct(1, staleness=n), same(LONG), 6, warming=3) for n in (0, 1))
    assert 3600 / apart.per_hour == pytest.approx(15 + 10 + 3)
    # Publishing needs no core, but for the pause.
    assert 3600 / beside.per_hour == pytest.approx(15 + 10 + 1, rel=0.01)


def test_a_barrier_per_turn_waits_for_the_longest_of_each_turn() -> None:
    uneven = GroupShape(
        tuple(EpisodeShape(0, (TurnShape(first, 0.0), TurnShape(11 - first))) for first in (1, 10)), computed=1
    )
    machines = replace(MACHINES, server=replace(SERVER, per_sequence=0.0), learner=replace(LEARNER, token=0.0))
    free, held = (simulate(machines, Conduct(1, turn_barrier=held), same(uneven), 1).median for held in (False, True))
    assert free == pytest.approx(11 * 0.5 + 3)
    assert held == pytest.approx(20 * 0.5 + 3)


def test_a_barrier_per_turn_with_stale_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match="allows no staleness"):
        Conduct(1, staleness=1, turn_barrier=True)


def test_no_token_is_lost() -> None:
    groups = MIXED.groups(8 * 6, random.Random(3))
    # Those of a seventh step begin when the sixth ends, and nothing of them is sampled by then.
    made = simulate(MACHINES, Conduct(8), iter([*groups, *groups[:8]]), 6)
    sampled = sum(episode.sampled for group in groups for episode in group.episodes)
    assert made.tokens_per_second * sum(made.steps) == pytest.approx(sampled)
    assert made.signal * sum(made.steps) / 3600 == pytest.approx(sum(group.signal for group in groups))


def test_more_servers_are_never_slower() -> None:
    seconds = [mixed(Conduct(8), replace(MACHINES, servers=servers)).median for servers in (1, 2, 4, 8)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < seconds[0]


def test_the_same_seed_gives_the_same_run() -> None:
    conduct = Conduct(8, staleness=2, refill=1)
    assert mixed(conduct) == mixed(conduct)
    assert mixed(conduct) != mixed(conduct, seed=2)


@pytest.mark.parametrize("bound", [0, 1, 2, 4])
def test_no_trained_episode_is_staler_than_its_bound(bound: int) -> None:
    made = mixed(Conduct(8, staleness=bound), replace(MACHINES, servers=4), steps=40)
    assert max(made.staleness) == bound
    assert sum(made.staleness.values()) == pytest.approx(1)
    assert made.dropped < 8


def test_a_group_that_long_ones_hold_up_past_its_bound_is_dropped() -> None:
    long = GroupShape((EpisodeShape(0, (TurnShape(200),)),), 40)
    made = simulate(MACHINES, Conduct(2, staleness=1), itertools.cycle([long, *[GROUP] * 40]), 30)
    assert made.dropped > 0
    assert max(made.staleness) == 1


def test_refill_replaces_groups_without_signal_as_often_as_it_may() -> None:
    plain, once = (mixed(Conduct(8, refill=rounds), steps=40) for rounds in (0, 1))
    assert plain.redrawn == 0
    assert 0 < once.redrawn <= 8
    assert once.signal / once.per_hour > plain.signal / plain.per_hour
    none = simulate(MACHINES, Conduct(2, refill=3), same(replace(GROUP, computed=0)), 4)
    assert none.redrawn == 6
    assert none.signal == 0


def test_turns_that_stay_on_their_server_compute_less() -> None:
    servers = replace(MACHINES, servers=8)
    sticky, scattered = (mixed(Conduct(16, routing=way), servers) for way in ("sticky", "random"))
    assert sticky.cached > scattered.cached
    assert sticky.prefilled < scattered.prefilled
    assert sticky.median < scattered.median


def test_fewer_at_once_leave_room_for_what_is_cached() -> None:
    small = replace(MACHINES, server=replace(SERVER, kv_tokens=600))
    crowded, few = (mixed(Conduct(16, at_once=limit), small) for limit in (None, 3))
    assert few.cached > crowded.cached


def test_keys_and_values_that_are_computed_anew_cost_time() -> None:
    slow = replace(MACHINES, server=replace(SERVER, prefill=0.05))
    kept, anew = (mixed(Conduct(8, staleness=2, keep_kv=keep), slow, steps=40) for keep in (True, False))
    assert anew.prefilled > kept.prefilled
    assert sum(anew.steps) > sum(kept.steps)


def test_even_lengths_on_gpus_take_what_the_plan_has_worked_out() -> None:
    """Four H100s that sample the paper's step: the plan's decoding and prefill, one after the other."""
    settings = load_settings("qwen2.5-7b-musique")
    assumed = Assumptions()
    around = Surroundings(searches_per_second=math.inf, search=0.0, coordination=0.0)
    machines = gpu_machines(settings, Fleet(4, "H100"), Fleet(4, "H100"), assumed, around)
    even = StatedShape(assumed.prompt, assumed.sampled, assumed.searches, 5 * assumed.passage, 0.0, 0.0, 8192, 1.0, 5)
    groups = even.groups(256, random.Random(1))
    alone = replace(machines, learner=LearnerRates(0.0, 1, 0.0, 0.0, 0.0, 1))
    planned = plan(settings, shape_of(settings), Fleet(4, "H100"), Fleet(4, "H100"), assumed).seconds["rollout"]
    assert simulate(alone, Conduct(256), iter(groups * 2), 1).median == pytest.approx(planned, rel=0.25)
