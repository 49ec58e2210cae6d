"""Sampled tokens a second of the policy server on this machine, with vLLM's spinning as it is and with ours off.

Run: python benchmarks/policy_throughput.py (needs `make prepare`; about four minutes). Ratios are against vLLM as it is.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time

import httpx
from transformers import AutoTokenizer

from research.assets import local_checkpoint
from research.clients import PolicyClient
from research.config import load_settings
from research.episode import Sampling
from research.prompts import load_prompt
from research.tokens import HuggingFaceTokenizer

PORT = 18901
URL = f"http://127.0.0.1:{PORT}"
REQUESTS, TOKENS, ROUNDS = 48, 96, 5


async def measure() -> list[float]:
    """Tokens a second of each round of concurrent requests."""
    settings = load_settings()
    tokenizer = HuggingFaceTokenizer(AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data)))
    prompt = tokenizer.prompt_ids(load_prompt(settings.episode.prompt), "Who painted The Starry Night?")
    rates = []
    async with PolicyClient(URL) as client:
        await client.generate(prompt, 8, Sampling(0.0))
        for _ in range(ROUNDS):
            started = time.perf_counter()
            done = await asyncio.gather(*(client.generate(prompt, TOKENS, Sampling(1.0)) for _ in range(REQUESTS)))
            rates.append(sum(len(g.token_ids) for g in done) / (time.perf_counter() - started))
    return rates


def serve_and_measure(spin: bool) -> float:
    """Median rate of a fresh server."""
    environment = {**os.environ, "RESEARCH_BENCHMARK_SPIN": "1" if spin else ""}
    command = [sys.executable, "-m", "services.cli.main", "serve", "policy", f"policy.port={PORT}"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                if httpx.get(f"{URL}/readyz", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        rates = asyncio.run(measure())
        print(f"spin {spin}:", [round(rate) for rate in rates], flush=True)
        return statistics.median(rates)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Both servers, one after the other, twice, so that a busy neighbour shows."""
    spinning, waiting = [], []
    for _ in range(2):
        spinning.append(serve_and_measure(True))
        waiting.append(serve_and_measure(False))
    ratios = [w / s for w, s in zip(waiting, spinning, strict=True)]
    print(f"tokens/s spinning {spinning}, waiting {waiting}; ratios {[round(r, 2) for r in ratios]}")


if __name__ == "__main__":
    main()
