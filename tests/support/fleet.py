"""Policy servers without a model behind `Replicas`, and the episodes of a step: prompts grow, seeds differ by turn."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from research.clients import PolicyAdmin, PolicyClient
from research.episode.agent import Finish, Generation, Policy, Sampling
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import DiskSync


@dataclass
class Server:
    """A policy server that takes a while, and writes its own number."""

    number: int
    busy: int = 0
    busiest: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.number}"

    async def generate(self, prompt_ids: list[int], max_tokens: int, sampling: Sampling) -> Generation:
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        for _ in range(random.Random(sampling.seed).randint(1, 9)):
            await asyncio.sleep(0)
        self.busy -= 1
        return Generation([self.number, sampling.seed or 0], [0.0] * 2, ["0"] * 2, Finish.SEARCH)


class Fleet:
    """Some servers, and the steps that they sample."""

    def __init__(self, count: int) -> None:
        self.servers = [Server(number) for number in range(count)]
        self.pairs = [Replica(cast(PolicyClient, each), cast(PolicyAdmin, each)) for each in self.servers]
        self.replicas = Replicas(self.pairs, DiskSync(), lambda line: None)

    async def episode(self, policy: Policy, prompt: list[int], seed: int, turns: int) -> list[int]:
        """The server of each turn."""
        places: list[int] = []
        for turn in range(turns):
            ids = (await policy.generate(prompt, 9, Sampling(seed=seed + 7919 * turn))).token_ids
            prompt, places = prompt + ids, [*places, ids[0]]
            await asyncio.sleep(0)
        return places

    def step(
        self, questions: int, members: int, turns: int, policy_of: Callable[[str], Policy] | None = None
    ) -> list[list[list[int]]]:
        """The server of each turn, by group and episode; `policy_of` replaces `Replicas.of_episode`."""
        policy_of = policy_of or self.replicas.of_episode

        async def group(number: int) -> list[list[int]]:
            def member(place: int) -> Awaitable[list[int]]:
                return self.episode(policy_of(f"1.{number}"), [number] * 80, 1000 * number + place, turns)

            return await asyncio.gather(*map(member, range(members)))

        async def all_groups() -> list[list[list[int]]]:
            return await asyncio.gather(*(group(number) for number in range(questions)))

        return asyncio.run(all_groups())


def stays(groups: list[list[list[int]]]) -> float:
    """The share of later turns that were sampled where the turn before was."""
    pairs = [pair for episodes in groups for places in episodes for pair in pairwise(places)]
    return sum(before == after for before, after in pairs) / len(pairs)
