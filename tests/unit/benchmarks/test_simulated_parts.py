"""The parts of the simulator against closed forms."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from statistics import fmean

import pytest
from simpy import Environment, Event

from benchmarks.simulation.parts.cache import PrefixCache
from benchmarks.simulation.parts.routing import Router
from benchmarks.simulation.parts.server import PolicyServer, Request
from benchmarks.simulation.parts.stations import Barrier, Line
from benchmarks.simulation.settings import ServerRates
from benchmarks.simulation.workload import StatedShape

RATES = ServerRates(iteration=1.0, per_sequence=0.5, prefill=0.25, sequences=64, kv_tokens=10**6, block=1)


def ends(rates: ServerRates, *requests: tuple[float, Request]) -> list[float]:
    """When each request ends that a server gets at the given times."""
    env = Environment()
    server, at = PolicyServer(env, rates), [0.0] * len(requests)

    def ask(number: int, begin: float, request: Request) -> Generator[Event, int, None]:
        yield env.timeout(begin)
        yield server.generate(request)
        at[number] = env.now

    for number, (begin, request) in enumerate(requests):
        env.process(ask(number, begin, request))
    env.run()
    assert server.sampled == sum(request.sampled for _, request in requests)
    return at


def request(name: str, sampled: int, context: int = 0, prompt: int = 0, group: str = "group") -> Request:
    return Request(name, group, context, prompt, sampled)


def test_a_request_alone_takes_its_prefill_and_its_iterations() -> None:
    assert ends(RATES, (3.0, request("a", 10, context=8))) == [pytest.approx(3 + 8 * 0.25 + 10 * 1.5)]


def test_two_requests_share_iterations_while_both_run() -> None:
    # Two tokens alone, 8 beside the other (2 s each), of which it has 2 left, alone again.
    assert ends(RATES, (0.0, request("a", 10)), (3.0, request("b", 10))) == [
        pytest.approx(3 + 8 * 2),
        pytest.approx(3 + 8 * 2 + 2 * 1.5),
    ]


def test_prefill_holds_up_what_decodes() -> None:
    # Three tokens alone; then it waits for the other's prefill (2 s), and both get their last token.
    both = ends(RATES, (0.0, request("a", 4)), (4.5, request("b", 1, context=8)))
    assert both == [pytest.approx(4.5 + 2 + 2)] * 2


@pytest.mark.parametrize("limit", [{"sequences": 1}, {"kv_tokens": 19}])
def test_what_does_not_fit_waits_its_turn(limit: dict[str, int]) -> None:
    rates = replace(RATES, **limit)
    assert ends(rates, (0.0, request("a", 10)), (0.0, request("b", 10))) == [15.0, pytest.approx(30.0)]


def test_a_request_that_is_larger_than_the_cache_runs_alone() -> None:
    assert ends(replace(RATES, kv_tokens=5), (0.0, request("a", 10))) == [15.0]


def test_without_a_price_per_sequence_nobody_slows_anybody() -> None:
    chance = random.Random(1)
    asked = [(chance.uniform(0, 50), request(str(n), chance.randint(1, 40))) for n in range(50)]
    done = ends(replace(RATES, per_sequence=0.0), *asked)
    assert done == [pytest.approx(begin + each.sampled) for begin, each in asked]


def test_shared_iterations_are_the_queue_m_m_1_with_processor_sharing() -> None:
    """Poisson arrivals, exponential lengths, and a price per sequence only: the mean stay is 1 / (mu - lambda)."""
    chance, tokens, price, load = random.Random(4), 200, 0.01, 0.6
    service = 1 / (tokens * price)
    at, asked = 0.0, []
    for number in range(20_000):
        at += chance.expovariate(load * service)
        asked.append((at, request(str(number), max(1, round(chance.expovariate(1 / tokens))))))
    rates = ServerRates(0.0, price, 0.0, 10**6, 10**12, 1)
    stay = fmean(end - begin for end, (begin, _) in zip(ends(rates, *asked), asked, strict=True))
    assert stay == pytest.approx(1 / (service * (1 - load)), rel=0.05)


def test_the_next_turn_computes_only_what_is_new_to_its_server() -> None:
    env = Environment()
    server = PolicyServer(env, replace(RATES, block=16))
    for context, prefilled in ((40, 40), (70, 40 + 70 - 48)):  # 40 + 10 tokens are there, in three whole blocks
        env.run(until=server.generate(request("a", 10, context=context, prompt=40)))
        assert server.prefilled == prefilled
    env.run(until=server.generate(request("b", 10, context=40, prompt=40)))  # another member: two blocks of the prompt
    assert server.prefilled == 62 + 40 - 32
    assert server.prompted == 150


@pytest.mark.parametrize(("keep", "anew"), [(True, 0), (False, 12 + 4)])
def test_new_weights_under_a_running_request_keep_or_recompute_its_tokens(keep: bool, anew: int) -> None:
    env = Environment()
    server = PolicyServer(env, replace(RATES, prefill=0.0))
    done = server.generate(request("a", 10, context=12))
    env.run(until=6.0)  # four tokens
    server.new_weights(1, keep_kv=keep)
    assert env.run(until=done) == 0  # version 0 sampled the first token
    assert server.recomputed == anew
    assert env.run(until=server.generate(request("b", 1))) == 1


def test_a_server_that_stands_still_goes_on_where_it_was() -> None:
    env = Environment()
    server = PolicyServer(env, RATES)
    done = server.generate(request("a", 10))
    for now, speed in ((6.0, 0.0), (106.0, 0.5)):
        env.run(until=now)
        server.set_speed(speed)
    env.run(until=done)
    assert env.now == pytest.approx(106 + 9 / 0.5)
    assert server.busy_seconds == pytest.approx(6 + 18)


def test_the_cache_drops_what_was_used_least_recently() -> None:
    cache = PrefixCache()
    for owner in ("a", "b", "c"):
        cache.put(owner, 10)
    cache.put("a", 15)
    cache.shrink(26)
    assert (cache.take("b"), cache.take("c"), cache.take("a"), cache.tokens) == (0, 10, 15, 0)


def test_a_line_is_the_queue_m_d_1() -> None:
    """The mean wait of Poisson arrivals at a constant service time is load / (2 mu (1 - load))."""
    env, chance, load = Environment(), random.Random(2), 0.8
    stays: list[float] = []
    line = Line(env, 1.0)

    def ended_after(began: float) -> Callable[[Event], None]:
        return lambda _: stays.append(env.now - began)

    def arrive() -> Generator[Event, None, None]:
        for _ in range(20_000):
            yield env.timeout(chance.expovariate(load))
            line.serve(3.0).callbacks.append(ended_after(env.now))

    env.process(arrive())
    env.run()
    assert fmean(stays) == pytest.approx(3 + 1 + load / (2 * (1 - load)), rel=0.05)


def test_a_burst_at_a_line_takes_one_service_each() -> None:
    env = Environment()
    line = Line(env, 0.5)
    env.run(until=env.all_of([line.serve() for _ in range(10)]))
    assert env.now == 5.0


def test_a_barrier_opens_when_the_last_has_come_or_left() -> None:
    env = Environment()
    barrier = Barrier(env)
    for _ in range(3):
        barrier.join()
    first, second = barrier.arrive(), barrier.arrive()
    assert not first.triggered
    barrier.leave()
    assert first.triggered
    assert second.triggered
    assert not barrier.arrive().triggered


def test_sticky_episodes_stay_and_groups_begin_together_up_to_a_bound() -> None:
    router = Router(8, "sticky", random.Random(1))
    begun = [[router.choose(group, None) for _ in range(5)] for group in range(100)]
    assert fmean(len(set(members)) for members in begun) < 2  # by chance it would be 3.9
    loads = Counter(server for members in begun for server in members)
    assert max(loads.values()) <= 1.25 * 500 / 8 + 1
    assert router.choose(1, 5) == 5


def test_random_turns_go_anywhere() -> None:
    router = Router(8, "random", random.Random(1))
    stayed = fmean(router.choose(1, 5) == 5 for _ in range(4000))
    assert stayed == pytest.approx(1 / 8, abs=0.02)


def test_stated_lengths_have_the_stated_means() -> None:
    shape = StatedShape(250, 430, 4, 725, 0.45, 0.0, 8192, 0.65, 5)
    groups = shape.groups(4000, random.Random(1))
    episodes = [episode for group in groups for episode in group.episodes]
    assert fmean(len(episode.turns) - 1 for episode in episodes) == pytest.approx(4, rel=0.02)
    assert fmean(episode.sampled for episode in episodes) == pytest.approx(430, rel=0.02)
    assert fmean(episode.tokens for episode in episodes) == pytest.approx(250 + 430 + 4 * 725, rel=0.02)
    assert fmean(group.signal for group in groups) == pytest.approx(0.65, abs=0.03)


def test_an_episode_that_rambles_ends_at_the_limit() -> None:
    shape = StatedShape(250, 430, 4, 725, 0.45, 1.0, 8192, 1.0, 5)
    (group,) = shape.groups(1, random.Random(1))
    assert {episode.tokens for episode in group.episodes} == {250 + 8192}
