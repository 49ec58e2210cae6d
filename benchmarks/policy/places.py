"""How many sequences should a CPU decode at once? Rollout tokens per second, and how long who asks beside them waits.

Run: python -m benchmarks.policy.places [--places 64 32 16] [--runs runs/places] [section.key=value …]; needs `research
prepare`. For each number the policy is started with it, is asked for 128 rollouts of 160 tokens with the priority of
the trainer's, and each five seconds for 60 tokens with that of people, until the rollouts are done.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median

import httpx

from benchmarks.load.mixed import held_out_questions
from benchmarks.policy.services import policy_and_retriever
from benchmarks.retriever.load import free_port
from research.clients import BEHIND_WHO_ASKS

ROLLOUTS, ROLLOUT_TOKENS = 128, 160
ASK_EVERY, ASKED_TOKENS = 5.0, 60  # seconds, tokens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, nargs="+", default=[64, 32, 16])
    parser.add_argument("--runs", type=Path, default=Path("runs/places"))
    parser.add_argument("overrides", nargs="*", help="settings, such as policy.threads=4")
    arguments = parser.parse_args()
    print("| `policy.max_num_seqs` | rollout tokens/s | who asks waits, median s | most s |\n|---|---|---|---|")
    for places in arguments.places:
        settings = [
            f"policy.max_num_seqs={places}",
            f"paths.runs={arguments.runs.resolve()}",
            *arguments.overrides,
        ]
        with policy_and_retriever(*settings, retriever_port=free_port()) as (url, _):
            rate, waits = asyncio.run(measured(url, held_out_questions()))
        print(f"| {places} | {rate:.0f} | {median(waits):.1f} | {max(waits):.1f} |", flush=True)


async def measured(url: str, texts: list[str]) -> tuple[float, list[float]]:
    """Tokens per second of all rollouts, and the seconds of each request beside them."""
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as http:

        async def sample(number: int, priority: int, tokens: int) -> float:
            body = {
                "model": "policy",
                "prompt": f"Question: {texts[number % len(texts)]}\n" * 6,  # as long as what an episode has read
                "max_tokens": tokens,
                "ignore_eos": True,
                "seed": number,
                "priority": priority,
            }
            begun = time.perf_counter()
            (await http.post("/v1/completions", json=body)).raise_for_status()
            return time.perf_counter() - begun

        await sample(0, 0, 8)  # the first request finds nothing compiled
        begun = time.perf_counter()
        rollouts = asyncio.gather(*(sample(number, BEHIND_WHO_ASKS, ROLLOUT_TOKENS) for number in range(ROLLOUTS)))
        people: list[asyncio.Task[float]] = []
        while not rollouts.done():
            people.append(asyncio.create_task(sample(ROLLOUTS + len(people), 0, ASKED_TOKENS)))
            await asyncio.wait([rollouts], timeout=ASK_EVERY)
        await rollouts
        rate = ROLLOUTS * ROLLOUT_TOKENS / (time.perf_counter() - begun)
        return rate, await asyncio.gather(*people)


if __name__ == "__main__":
    main()
