"""How many turns of a step are sampled where the turn before was, by the number of servers and the rule.

Run: python -m benchmarks.policy.routing. 256 questions × 5 episodes of 4 turns, prompts of 80 tokens that grow, a seed
a turn, servers without a model. `former` hashed the first 256 tokens of the prompt with the seed, until 2026-11.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from research.episode.agent import Generation, Sampling
from tests.support.fleet import Fleet, stays


@dataclass(frozen=True, slots=True)
class Former:
    """The rule that was."""

    fleet: Fleet

    def of_episode(self, group: str) -> Former:
        return self

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        key = zlib.crc32(repr((prompt_ids[:256], sampling.seed)).encode())
        server = self.fleet.servers[key % len(self.fleet.servers)]
        return await server.generate(list(prompt_ids), max_tokens, sampling)


def main() -> None:
    """Sample and print a table in Markdown."""
    print("| servers | rule | turns that stay | groups that begin together | most in flight, over the mean |")
    print("|---|---|---|---|---|")
    for count in (2, 8):
        for rule in ("former", "now"):
            fleet = Fleet(count)
            former = Former(fleet)
            groups = fleet.step(256, 5, 4, former.of_episode if rule == "former" else None)
            together = sum(len({places[0] for places in episodes}) == 1 for episodes in groups) / len(groups)
            most = max(server.busiest for server in fleet.servers) / (256 * 5 / count)
            print(f"| {count} | {rule} | {stays(groups):.1%} | {together:.1%} | {most:.2f} |")


if __name__ == "__main__":
    main()
