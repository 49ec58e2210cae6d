"""What is compared: for each question, machines and conducts that differ in what is asked about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from apps.plan.estimate import Assumptions, Fleet
from benchmarks.simulation.check import calibrated
from benchmarks.simulation.machines import Surroundings, gpu_machines
from benchmarks.simulation.recorded import SAMPLE, read_sample
from benchmarks.simulation.settings import Conduct, LearnerRates, Machines
from benchmarks.simulation.workload import GroupShape, StatedShape
from research.config import load_settings

PRESET = "qwen2.5-7b-musique"
ASSUMED = Assumptions()
AROUND = Surroundings()
# Prompt, sampled tokens, searches and signal are those of `research plan`. How lengths vary is not known: turns of the
# built-in run have a spread of .18 and its episodes end at 448 tokens; a larger model that reasons varies more.
PAPER = StatedShape(
    prompt=ASSUMED.prompt,
    sampled=ASSUMED.sampled,
    searches=ASSUMED.searches,
    result=5 * ASSUMED.passage,
    spread=0.45,
    rambling=0.005,
    limit=8192,
    signal=ASSUMED.trained,
    group=5,
)
_QUESTIONS = 256
_ROUTINGS: tuple[Literal["sticky", "random"], ...] = ("sticky", "random")
_AT_ONCE = LearnerRates(0.0, 1, 0.0, 0.0, 0.0, 1)  # so that rollouts are seen alone


@dataclass(frozen=True, slots=True)
class Case:
    """A run to simulate; `workload` is stated, or groups of a recorded run to draw from."""

    name: str
    machines: Machines
    conduct: Conduct
    workload: StatedShape | Sequence[GroupShape] = PAPER


def paper(learner: int, policy: int, around: Surroundings = AROUND) -> Machines:
    """The paper's run with so many H100s for the learner and for policy servers."""
    return gpu_machines(load_settings(PRESET), Fleet(learner, "H100"), Fleet(policy, "H100"), ASSUMED, around)


def staleness() -> list[Case]:
    cases = []
    for learner, policy in ((4, 4), (6, 2)):
        machines = paper(learner, policy)
        for at_once in (None, 200):
            for bound in (0, 1, 2, 4):
                for keep in (True, False) if bound else (True,):
                    name = f"{learner} + {policy}, {at_once or 'all'} at once, staleness {bound}"
                    conduct = Conduct(_QUESTIONS, bound, keep_kv=keep, at_once=at_once)
                    cases.append(Case(name if keep else f"{name}, KV anew", machines, conduct))
    return cases


def turn_barrier() -> list[Case]:
    steps = read_sample(SAMPLE)
    groups, cores = [group for step in steps for group in step.groups], calibrated(steps)
    even = replace(PAPER, rambling=0.0)
    cases = []
    for milliseconds in (0, 50, 300):
        search = milliseconds / 1000
        four = replace(paper(4, 4, replace(AROUND, search=search)), learner=_AT_ONCE)
        two = replace(cores, learner=_AT_ONCE, search=search)
        for barrier in (False, True):
            what = f"searches of {milliseconds} ms, {'a' if barrier else 'no'} barrier"
            cases += [
                Case(f"4 x H100, {what}", four, Conduct(_QUESTIONS, turn_barrier=barrier)),
                Case(f"4 x H100 and none rambles, {what}", four, Conduct(_QUESTIONS, turn_barrier=barrier), even),
                Case(f"two cores, {what}", two, Conduct(16, turn_barrier=barrier), groups),
                Case(f"two cores and two questions, {what}", two, Conduct(2, turn_barrier=barrier), groups),
            ]
    return sorted(cases, key=lambda case: case.name.partition(",")[0])


def routing() -> list[Case]:
    return [
        Case(
            f"{servers} servers, {at_once or 'all'} at once, {way}",
            replace(paper(4, servers), learner=_AT_ONCE),
            Conduct(_QUESTIONS, routing=way, at_once=at_once),
        )
        for servers in (1, 2, 4, 8, 48)
        for at_once in ((None, 200) if servers < 8 else (None,))
        for way in _ROUTINGS
    ]


def refill() -> list[Case]:
    return [
        Case(f"staleness {bound}, refill {rounds}", paper(4, 4), Conduct(_QUESTIONS, bound, refill=rounds))
        for bound in (0, 1)
        for rounds in (0, 1, 2)
    ]


def split() -> list[Case]:
    fleets = {8: (2, 3, 4, 5, 6, 7), 64: (16, 24, 32, 40, 48, 56), 1024: (512, 640, 768, 896)}
    return [
        Case(
            f"{gpus} GPUs, {learner} of them learn, staleness {bound}",
            paper(learner, gpus - learner, _many(max(1, gpus // 64))),
            Conduct(_QUESTIONS * (8 if gpus > 64 else 1), bound),
        )
        for gpus, learners in fleets.items()
        for bound in (0, 1)
        for learner in learners
    ]


def scale() -> list[Case]:
    cases = []
    for gpus, questions in ((8, 256), (64, 256), (64, 2048), (1024, 256), (1024, 2048)):
        for many in (1, gpus // 64) if gpus > 64 else (1,):
            machines = paper(gpus * 3 // 4, gpus // 4, _many(many))
            name = f"{gpus} GPUs, {questions} questions a step, {many} event loop and retriever"
            cases.append(Case(name, machines, Conduct(questions, 1)))
    return cases


def rambling() -> list[Case]:
    return [
        Case(
            f"{share:.1%} ramble, staleness {bound}",
            paper(4, 4),
            Conduct(_QUESTIONS, bound),
            replace(PAPER, rambling=share),
        )
        for share in (0.0, 0.005, 0.02)
        for bound in (0, 1, 2)
    ]


def two_cores() -> list[Case]:
    steps = read_sample(SAMPLE)
    groups, machines = [group for step in steps for group in step.groups], calibrated(steps)
    slow = replace(machines, search=0.3)
    return [
        Case(f"{name}, staleness {bound}", cores, Conduct(16, bound), groups)
        for name, cores in (("searches as recorded", machines), ("searches of 300 ms", slow))
        for bound in (0, 1, 2)
    ]


def _many(count: int) -> Surroundings:
    """So many event loops and retrievers, each with its part of the episodes."""
    return replace(
        AROUND,
        searches_per_second=count * AROUND.searches_per_second,
        coordination=AROUND.coordination / count,
    )


QUESTIONS: dict[str, tuple[str, Callable[[], list[Case]]]] = {
    "staleness": ("May the weights lag behind? 8 H100, learner + policy, episodes at once per server", staleness),
    "barrier": ("A barrier per turn? Rollouts alone", turn_barrier),
    "routing": ("Does an episode stay on its server? Rollouts alone, episodes at once per server", routing),
    "refill": ("Are groups without signal drawn again? 4 + 4 H100", refill),
    "split": ("How many GPUs learn? One event loop and retriever per 64 GPUs", split),
    "scale": ("What holds many GPUs back? Three of four learn, staleness 1", scale),
    "rambling": ("What do long episodes cost? 4 + 4 H100", rambling),
    "cores": ("Two cores that policy and learner share, the built-in run", two_cores),
}
