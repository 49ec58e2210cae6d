"""Ten times as many clients as are admitted, for two minutes: what becomes of those that are, and of memory?

Run: python -m benchmarks.policy.overload [--minutes 2] [--model DIR]; starts a retriever and a policy of its own, and
needs `research prepare`. Clients ask `/answer` again as soon as they are answered; those that are refused come again
after a second. Before and after, as many clients as are admitted do the same for half the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
from httpx_aiohttp import AiohttpTransport

from benchmarks.policy.reload import resident_mib
from benchmarks.policy.services import policy_and_retriever

ADMITTED = 16
TIMES = 10
_PAUSE_SECONDS = 1.0


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    arguments = parser.parse_args()
    lines = Path("data/questions/builtin-held_out.jsonl").read_text(encoding="utf-8").splitlines()
    bodies = [{"question": json.loads(line)["text"]} for line in lines]
    overrides = [f"model.name={arguments.model}", f"policy.answer_concurrency={ADMITTED}"]
    print("| clients | answered/s | statuses | answered p50 s | p99 s | RSS MiB, first to last, most |")
    print("|---|---|---|---|---|---|")
    with policy_and_retriever(*overrides) as (url, process):
        for clients, share in ((ADMITTED, 0.5), (TIMES * ADMITTED, 1.0), (ADMITTED, 0.5)):
            answers = f"{url}/answer"
            found = asyncio.run(ask_for(answers, process.pid, bodies, clients, 60 * arguments.minutes * share))
            print(f"| {clients} | {row(found)} |", flush=True)


def row(found: dict[str, Any], each: int = 1) -> str:
    """Cells of what `ask_for` found; each request counts as so many."""
    centiles = quantiles(found["seconds"], n=100) if len(found["seconds"]) > 1 else [float("nan")] * 99
    memory = found["memory"]
    return (
        f"{each * len(found['seconds']) / found['passed']:.2f} | {dict(found['statuses'])} "
        f"| {centiles[49]:.2f} | {centiles[98]:.2f} | {memory[0]:.0f} to {memory[-1]:.0f}, {max(memory):.0f}"
    )


async def ask_for(
    url: str, pid: int, bodies: Sequence[dict[str, Any] | None], clients: int, seconds: float
) -> dict[str, Any]:
    """Ask with so many clients for so long; a body of None is a GET."""
    statuses: Counter[int] = Counter()
    answered: list[float] = []
    memory: list[float] = []
    begun = time.perf_counter()

    async def client(http: httpx.AsyncClient, place: int) -> None:
        while time.perf_counter() - begun < seconds:
            place += clients
            asked = time.perf_counter()
            body = bodies[place % len(bodies)]
            response = await (http.get(url) if body is None else http.post(url, json=body))
            statuses[response.status_code] += 1
            if response.status_code == 200:
                answered.append(time.perf_counter() - asked)
            else:
                await asyncio.sleep(_PAUSE_SECONDS)

    async def stream() -> None:
        while time.perf_counter() - begun < seconds:
            memory.append(resident_mib(pid))
            await asyncio.sleep(1)

    transport = AiohttpTransport(limits=httpx.Limits(max_connections=0))
    async with httpx.AsyncClient(timeout=300, transport=transport) as http:
        await asyncio.gather(stream(), *(client(http, place) for place in range(clients)))
    return {"statuses": statuses, "seconds": answered, "memory": memory, "passed": time.perf_counter() - begun}


if __name__ == "__main__":
    main()
