"""An hour of training, `/answer` and `/search` at once: what fails, and whose memory grows?

Run: python -m benchmarks.load.mixed [--minutes 60] [--runs runs/mixed] [section.key=value …]; needs
`research prepare`. Starts the three services; clients ask questions and searches at a steady rate while the trainer
trains on the same policy and exchanges its weights. Writes a table of requests and one of memory: means of five minutes
each, a line through those after the first ten minutes, with a 95 % interval (residuals drawn anew), and the most that
was held in each phase of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.policy.reload import resident_mib
from benchmarks.policy.services import policy_and_retriever
from benchmarks.retriever.load import SERVE, builtin_queries, free_port, serving
from services.web.auth import ADMIN_TOKEN_VARIABLE

TOKEN = "a-token-of-a-benchmark-that-is-no-secret"
BLOCK_SECONDS = 300.0
WARM_UP_BLOCKS = 2
SEARCH_EVERY, ANSWER_EVERY, SAMPLE_EVERY = 0.2, 4.0, 5.0  # seconds
UNTIL_STOPPED = 100_000  # steps


@dataclass(slots=True)
class Traffic:
    """What one route gave back: statuses (or the error's name) and the seconds of those answered with 200."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--runs", type=Path, default=Path("runs/mixed"))
    parser.add_argument("overrides", nargs="*", help="settings for all, such as grpo.questions_per_step=4")
    arguments = parser.parse_args()
    os.environ[ADMIN_TOKEN_VARIABLE] = TOKEN
    retriever, trainer = free_port(), free_port()
    places = [f"paths.runs={arguments.runs.resolve()}", *arguments.overrides]
    with policy_and_retriever(*places, retriever_port=retriever) as (policy_url, policy):
        retriever_url = f"http://127.0.0.1:{retriever}"
        command = [*SERVE[:-1], "trainer", f"trainer.port={trainer}", f"endpoints.retriever_url={retriever_url}"]
        command += [f"policy.port={policy_url.rsplit(':', 1)[1]}", f"grpo.steps={UNTIL_STOPPED}", "run=mixed"]
        with serving([*command, *places], trainer) as trainer_process:
            pids = {"policy": policy.pid, "trainer": trainer_process.pid, "retriever": listener(retriever)}
            urls = {"search": retriever_url, "answer": policy_url, "trainer": f"http://127.0.0.1:{trainer}"}
            asyncio.run(Mixed(urls, pids, 60 * arguments.minutes).run())


def listener(port: int) -> int:
    """The process that serves a port.

    Raises:
        LookupError: nobody does.
    """
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return int(connection.pid)
    raise LookupError(f"nothing listens on {port}")


def held_out_questions() -> list[str]:
    """The built-in questions that no run trains on."""
    lines = Path("data/questions/builtin-held_out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


class Mixed:
    """The traffic and what is seen of it."""

    def __init__(self, urls: dict[str, str], pids: dict[str, int], seconds: float) -> None:
        self._urls, self._pids, self._seconds = urls, pids, seconds
        self._traffic = {"search": Traffic(), "answer": Traffic()}
        self._memory: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
        self._most: dict[str, dict[str, float]] = {name: {} for name in pids}  # by phase of the run
        self._begun = time.perf_counter()

    async def run(self) -> None:
        """Ask for so long, stop the run and print."""
        async with httpx.AsyncClient(timeout=180, limits=httpx.Limits(max_connections=None)) as http:
            admin = {"Authorization": f"Bearer {TOKEN}"}
            (await http.post(f"{self._urls['trainer']}/run/start", headers=admin)).raise_for_status()
            self._begun = time.perf_counter()
            searches = ({"query": query} for query in itertools.cycle(builtin_queries()))
            questions = ({"question": question} for question in itertools.cycle(held_out_questions()))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._ask(http, "search", "/search", searches, SEARCH_EVERY))
                tasks.create_task(self._ask(http, "answer", "/answer", questions, ANSWER_EVERY))
                tasks.create_task(self._watch_memory(http))
            await http.post(f"{self._urls['trainer']}/run/stop", headers=admin)
            status = (await http.get(f"{self._urls['trainer']}/status")).json()
            steps: list[dict[str, Any]] = []
            while more := (await http.get(f"{self._urls['trainer']}/steps?after={len(steps)}")).json():
                steps += more
        self._print(status, steps)

    def _is_over(self) -> bool:
        return time.perf_counter() - self._begun > self._seconds

    async def _ask(self, http: httpx.AsyncClient, name: str, route: str, bodies: Any, every: float) -> None:
        """Send a request each so many seconds, whether or not those before it are answered."""
        async with asyncio.TaskGroup() as tasks:
            while not self._is_over():
                tasks.create_task(self._one(http, name, self._urls[name] + route, next(bodies)))
                await asyncio.sleep(every)

    async def _one(self, http: httpx.AsyncClient, name: str, url: str, body: dict[str, str]) -> None:
        traffic, asked = self._traffic[name], time.perf_counter()
        try:
            response = await http.post(url, json=body)
        except httpx.HTTPError as error:
            traffic.statuses[type(error).__name__] += 1
            traffic.examples.setdefault(type(error).__name__, str(error))
            return
        traffic.statuses[str(response.status_code)] += 1
        if response.status_code == 200:
            traffic.seconds.append(time.perf_counter() - asked)
        else:
            traffic.examples.setdefault(str(response.status_code), response.text[:300])

    async def _watch_memory(self, http: httpx.AsyncClient) -> None:
        while not self._is_over():
            try:
                phase = str((await http.get(f"{self._urls['trainer']}/status")).json()["phase"])
            except httpx.HTTPError as error:
                phase = f"({type(error).__name__} instead of a status)"
            for name, pid in self._pids.items():
                with suppress(psutil.NoSuchProcess):  # a child that ended between listing and reading
                    held = await asyncio.to_thread(resident_mib, pid)
                    self._memory[name].append((time.perf_counter() - self._begun, held))
                    self._most[name][phase] = max(held, self._most[name].get(phase, 0.0))
            await asyncio.sleep(SAMPLE_EVERY)

    def _print(self, status: dict[str, Any], steps: list[dict[str, Any]]) -> None:
        lost = sum(step.get("infra_errors", 0) for step in steps)
        sampled = sum(step.get("episodes", 0) for step in steps)
        print(f"run: {status['phase']}, {len(steps)} steps, {sampled} episodes, {lost} lost to faults of a service\n")
        print("| route | requests | statuses | p50 s | p99 s |\n|---|---|---|---|---|")
        for name, traffic in self._traffic.items():
            centiles = quantiles(traffic.seconds, n=100) if len(traffic.seconds) > 1 else [float("nan")] * 99
            asked = sum(traffic.statuses.values())
            print(f"| /{name} | {asked} | {dict(traffic.statuses)} | {centiles[49]:.2f} | {centiles[98]:.2f} |")
        for name, traffic in self._traffic.items():
            for status_name, example in traffic.examples.items():
                print(f"\n/{name} {status_name}: {example}")
        print(
            "\n| service | MiB, means of five minutes | MiB per hour after ten minutes (95 % interval) |\n|---|---|---|"
        )
        for name, samples in self._memory.items():
            means = block_means(samples)
            low, middle, high = slope(means[WARM_UP_BLOCKS:])
            shown = ", ".join(f"{mean:.0f}" for mean in means)
            print(f"| {name} | {shown} | {middle:+.0f} ({low:+.0f} to {high:+.0f}) |")
        print("\n| service | most MiB in each phase of the run |\n|---|---|")
        for name, phases in self._most.items():
            print(f"| {name} | {', '.join(f'{phase} {most:.0f}' for phase, most in phases.items())} |")


def block_means(samples: Sequence[tuple[float, float]]) -> list[float]:
    """Mean of each five minutes; the last may be shorter and is left out if it is less than half."""
    blocks: dict[int, list[float]] = {}
    for when, value in samples:
        blocks.setdefault(int(when // BLOCK_SECONDS), []).append(value)
    most = max((len(block) for block in blocks.values()), default=0)
    return [sum(block) / len(block) for block in blocks.values() if len(block) >= most / 2]


def slope(means: Sequence[float], draws: int = 4000) -> tuple[float, float, float]:
    """Growth per hour of evenly spaced means, least squares: lower end, middle and upper end.

    The interval resamples residuals. Fewer than four means have no interval: all three are nan.
    """
    if len(means) < 4:
        return (float("nan"),) * 3
    hours = np.arange(len(means)) * BLOCK_SECONDS / 3600
    values = np.asarray(means)
    gradient, start = np.polyfit(hours, values, 1)
    fitted = start + gradient * hours
    # Two parameters were fitted: residuals are smaller than errors by this.
    residuals = (values - fitted) * (len(values) / (len(values) - 2)) ** 0.5
    rng = np.random.default_rng(0)
    drawn = rng.choice(residuals, size=(draws, len(values)))
    gradients = np.polyfit(hours, (fitted + drawn).T, 1)[0]
    low, high = np.quantile(gradients, (0.025, 0.975))
    return float(low), float(gradient), float(high)


if __name__ == "__main__":
    main()
