"""Tokens per second of the policy by number format and kernels, at 1, 8 and 32 requests of 48 new tokens.

Run: python -m benchmarks.policy.number_formats [--avx2] [--compiled] [--set policy.threads=1 …]; needs `research
prepare`. `--avx2` emulates a processor without AVX-512 (tests/emulated_avx2); on such a processor leave it out.
Each row is the median of three rounds on a server of its own. The evaluation is of 128 held-out questions, greedily;
name trained weights for it (`--set policy.serve=runs/demo/weights/version-000009`), as untrained ones say little.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import httpx

from benchmarks.policy.services import policy_and_retriever
from research.config import load_settings
from research.questions.sampling import first_of_each_kind
from research.questions.sources import load_questions
from tests.emulated_avx2 import ENVIRONMENT

TOKENS, CLIENTS, ROUNDS = 48, (1, 8, 32), 3


async def rate(url: str, clients: int) -> float:
    """Sampled tokens per second over one burst; all prompts differ, so nothing is cached."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:

        async def one(number: int) -> None:
            ids = [1000 + (number * 97 + time.perf_counter_ns() // 1000 + position) % 40000 for position in range(80)]
            body = {
                "token_ids": ids,
                "sampling_params": {"max_tokens": TOKENS, "min_tokens": TOKENS, "temperature": 1.0},
            }
            (await http.post("/inference/v1/generate", json=body)).raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(clients)))
        return clients * TOKENS / (time.perf_counter() - started)


def evaluate(url: str) -> float:
    """Seconds until the agent has answered 128 held-out questions, of one hop and of two."""
    settings = load_settings()
    held_out = load_questions(settings.questions.held_out, "held_out", settings.paths.data)
    questions = [question.text for question in first_of_each_kind(held_out, {"one_hop": 64, "two_hop": 64})]
    started = time.perf_counter()
    httpx.post(f"{url}/answer", json={"questions": questions}, timeout=1200).raise_for_status()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--avx2", action="store_true", help="emulate a processor without AVX-512")
    parser.add_argument("--compiled", action="store_true", help="with policy.enforce_eager=false")
    parser.add_argument("--dtype", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--set", nargs="*", default=[], help="further settings")
    asked = parser.parse_args()
    environment = ENVIRONMENT if asked.avx2 else {}
    columns = ["number format", "start, s", *(f"{clients} requests" for clients in CLIENTS), "evaluation, s"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for dtype in asked.dtype:
        settings = [
            f"model.dtype={dtype}",
            f"policy.enforce_eager={str(not asked.compiled).lower()}",
            "policy.serve=base",
            "policy.answer_timeout=1000",
            "policy.answer_concurrency=128",
        ]
        started = time.perf_counter()
        with policy_and_retriever(*settings, *asked.set, environment=environment) as (url, _):
            seconds = time.perf_counter() - started
            asyncio.run(rate(url, 8))
            rates = [statistics.median(asyncio.run(rate(url, clients)) for _ in range(ROUNDS)) for clients in CLIENTS]
            evaluation = evaluate(url)
        cells = [dtype, *(f"{each:.0f}" for each in (seconds, *rates, evaluation))]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
