"""With two policy servers: how much of what is prefilled comes from the prefix cache, by how turns are routed.

Run: python -m benchmarks.policy.prefix_cache [--questions 16]; starts two policy servers with a thread each, and needs
`research prepare`. Each question has five episodes of four turns: a prompt, then after each turn a made-up result of
about 200 tokens. `scattered` is what it was until 2026-11: the seed of a turn is part of its key, so each turn lands
anywhere. `routed` is `Replicas`. Both ask the same servers; a salt keeps their caches apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from transformers import AutoTokenizer

from benchmarks.retriever.load import free_port
from research.clients import PolicyAdmin, PolicyClient
from research.config import load_settings
from research.episode.agent import Generation, Policy, Sampling
from research.episode.tokenizer import HuggingFaceTokenizer
from research.model_paths import local_checkpoint
from research.prompts import load_prompt
from services.system.launcher import running
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import DiskSync
from services.web.auth import ADMIN_TOKEN_VARIABLE

MEMBERS, TURNS, TURN_TOKENS, RESULT_TOKENS = 5, 4, 24, 200
TOKEN = "token-of-the-benchmark"
# vLLM's counters, in tokens: looked up in the prefix cache, and found there.
LOOKED_UP, FOUND = "vllm:prefix_cache_queries", "vllm:prefix_cache_hits"


@dataclass(frozen=True, slots=True)
class Scattered:
    """The former rule."""

    clients: Sequence[PolicyClient]

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        key = zlib.crc32(repr((prompt_ids[:256], sampling.seed)).encode())
        return await self.clients[key % len(self.clients)].generate(prompt_ids, max_tokens, sampling)


async def episode(policy: Policy, prompt: list[int], results: list[int], seed: int) -> None:
    """Four turns, each with its own seed, as an episode of a run has them."""
    ids, chance = list(prompt), random.Random(seed)
    for turn in range(TURNS):
        ids += (await policy.generate(ids, TURN_TOKENS, Sampling(seed=seed + 7919 * turn, stop=()))).token_ids
        start = chance.randrange(len(results) - RESULT_TOKENS)
        ids += results[start : start + RESULT_TOKENS]


async def counted(urls: Sequence[str]) -> list[float]:
    """The two counters, summed over the servers."""
    sums = [0.0, 0.0]
    async with httpx.AsyncClient() as http:
        for url in urls:
            text = (await http.get(f"{url}/metrics")).raise_for_status().text
            for number, name in enumerate((LOOKED_UP, FOUND)):
                sums[number] += sum(map(float, re.findall(rf"^{name}(?:_total)?{{.*}} (\S+)$", text, re.MULTILINE)))
    return sums


async def measure(urls: Sequence[str], name: str, prompts: Sequence[list[int]], results: list[int]) -> None:
    """Sample all episodes at once and print a line."""
    pairs = [Replica(PolicyClient(url, timeout=600), PolicyAdmin(url, token=TOKEN)) for url in urls]
    replicas = Replicas(pairs, DiskSync(), print)
    scattered = Scattered([pair.client for pair in pairs])
    policy_of: Callable[[str], Policy] = replicas.of_episode if name == "routed" else lambda group: scattered
    for pair in pairs:
        pair.client.weight_version = name
    try:
        before, started = await counted(urls), time.perf_counter()
        await asyncio.gather(
            *(
                episode(policy_of(str(number)), prompt, results, 1000 * number + member)
                for number, prompt in enumerate(prompts)
                for member in range(MEMBERS)
            )
        )
        seconds = time.perf_counter() - started
    finally:
        await replicas.close()
    asked, found = (after - former for after, former in zip(await counted(urls), before, strict=True))
    print(f"| {name} | {found / asked:.1%} | {asked - found:,.0f} of {asked:,.0f} | {seconds:.1f} |", flush=True)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=16)
    arguments = parser.parse_args()
    os.environ[ADMIN_TOKEN_VARIABLE] = TOKEN
    with tempfile.TemporaryDirectory() as runs:
        overrides = ["policy.replicas=2", "policy.threads=1", f"policy.port={free_port()}", "policy.kv_cache_gib=1"]
        overrides += ["policy.serve=base", f"paths.runs={runs}", "model.max_model_len=2048"]
        settings = load_settings(overrides=overrides)
        tokenizer = HuggingFaceTokenizer(
            AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data))
        )
        lines = Path("data/corpus/wikipedia-leads.jsonl").read_text(encoding="utf-8").splitlines()[:500]
        results = tokenizer.encode(" ".join(json.loads(line)["text"] for line in lines))
        rules = load_prompt("research-instruct")
        prompts = [
            tokenizer.prompt_ids(rules, f"Who painted picture {number}?") for number in range(arguments.questions)
        ]
        with running(["policy"], overrides, settings, Console(file=sys.stderr)):
            print("| turns are | from the cache | tokens prefilled | s |\n|---|---|---|---|")
            for name in ("scattered", "routed"):
                asyncio.run(measure(settings.endpoints.policy_urls, name, prompts, results))


if __name__ == "__main__":
    main()
