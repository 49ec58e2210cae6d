"""Two hundred reloads of the weights while 32 clients ask without a pause: what fails, what grows, how long a pause?

Run: python -m benchmarks.policy.reload [--reloads 200] [--gap 3] [--model DIR]; starts a retriever and a policy of its
own, and needs `research prepare`. Two checkpoints take turns: the model, and the same with noise on every matrix. After
each reload the digests of the weights that compute are compared with those that this checkpoint had the first time.
Each reload makes requests under way compute their prompts anew, so without a gap between reloads they get nowhere.
Before the first reload clients ask until the KV cache has been filled once: its pages count as memory only then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import psutil
import torch
from httpx_aiohttp import AiohttpTransport
from safetensors.torch import load_file, save_file

from benchmarks.policy.services import policy_and_retriever
from research.clients import PolicyAdmin
from research.model_paths import local_checkpoint
from research.schemas import WeightsRequest

CLIENTS = 32
# With a KV cache of 1 GiB, each of its blocks has been used by then (45,000 tokens, some 250 an answer).
ANSWERS_BEFORE = 250
TOKEN = "token-of-the-benchmark"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--gap", type=float, default=3, help="seconds from the end of a reload to the next")
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    arguments = parser.parse_args()
    lines = Path("data/questions/builtin-held_out.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["text"] for line in lines]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = two_checkpoints(local_checkpoint(arguments.model, Path("data")), Path(scratch))
        overrides = [f"model.name={arguments.model}", f"policy.weights_dir={scratch}", "policy.kv_cache_gib=1"]
        with policy_and_retriever(*overrides, environment={"RESEARCH_ADMIN_TOKEN": TOKEN}) as (url, process):
            result = asyncio.run(
                reload_under_load(url, process.pid, checkpoints, questions, arguments.reloads, arguments.gap)
            )
    print(json.dumps(result, indent=1))


def two_checkpoints(base: Path, scratch: Path) -> list[Path]:
    """The model, and the same with noise on every matrix."""
    original, noisy = scratch / "original", scratch / "noisy"
    shutil.copytree(base, original)
    shutil.copytree(base, noisy)
    torch.manual_seed(0)
    for file in noisy.glob("*.safetensors"):
        tensors = {n: t + 1e-3 * torch.randn_like(t) if t.ndim > 1 else t for n, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return [original, noisy]


async def reload_under_load(
    url: str, pid: int, checkpoints: list[Path], questions: list[str], reloads: int, gap: float
) -> Any:
    """Reload again and again while clients ask."""
    over, warm = asyncio.Event(), asyncio.Event()
    answered, failed = 0, []
    transport = AiohttpTransport(limits=httpx.Limits(max_connections=0))

    async def client(http: httpx.AsyncClient, place: int) -> None:
        nonlocal answered
        while not over.is_set():
            place += CLIENTS
            body = {"question": questions[place % len(questions)], "temperature": 1.0, "seed": place}
            response = await http.post("/answer", json=body)
            if response.status_code == 200 and response.json()["weight_versions"]:
                answered += 1
                if answered == ANSWERS_BEFORE:
                    warm.set()
            else:
                failed.append(response.text[:200])

    pauses, wrong, memory = [], 0, []
    digests: dict[int, dict[str, str]] = {}
    async with (
        PolicyAdmin(url, token=TOKEN, retries=0) as admin,
        httpx.AsyncClient(base_url=url, timeout=300, transport=transport) as http,
    ):
        clients = [asyncio.create_task(client(http, place)) for place in range(CLIENTS)]
        await warm.wait()
        before, begun = answered, time.perf_counter()
        for number in range(1, reloads + 1):
            checkpoint = checkpoints[number % 2]
            answer = await admin.update_weights(WeightsRequest(path=str(checkpoint), version=str(number)))
            pauses.append(sum(answer.seconds.values()))
            found = await admin.digests()
            wrong += digests.setdefault(number % 2, found) != found
            memory.append(resident_mib(pid))
            if number % 10 == 0:
                print(
                    f"{number} reloads, {answered} answers, {len(failed)} failed, {memory[-1]:.0f} MiB", file=sys.stderr
                )
            await asyncio.sleep(gap)
        passed = time.perf_counter() - begun
        over.set()
        await asyncio.gather(*clients)
    centiles = quantiles(pauses, n=100)
    return {
        "reloads": reloads,
        "seconds": round(passed),
        "answers": answered - before,
        "failed": failed,
        "digests that were wrong": wrong,
        "checkpoints differ": digests[0] != digests[1],
        "pause p50, p99, most (s)": [round(each, 3) for each in (centiles[49], centiles[98], max(pauses))],
        "memory after the 10th, the middle one, the last (MiB)": [
            round(memory[place]) for place in (9, len(memory) // 2, -1)
        ],
    }


def resident_mib(pid: int) -> float:
    """Memory of a process and all that it started; what several of them share (after a fork) is counted once."""
    server = psutil.Process(pid)
    return sum(float(each.memory_full_info().pss) for each in (server, *server.children(recursive=True))) / 2**20


if __name__ == "__main__":
    main()
