"""Twenty minutes at four fifths of capacity, two of ten-fold overload, then as before: what breaks, what grows?

Run: python -m benchmarks.retriever.soak [--minutes 20] [--overload-minutes 2]; needs `research prepare` and wrk.
Capacity is measured first, with 64 clients that never pause. Four fifths of it come from 128 clients that pause between
requests; the overload from 2,000 that do not, against a queue of 256 (their refused requests come again at once, which
makes more than ten times the capacity). Latencies of admitted requests are the
server's own (`research_retriever_request_seconds`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.programs import require_program
from benchmarks.retriever.load import HERE, SERVE, builtin_queries, free_port, serving

CLIENTS, OVERLOAD_CLIENTS, QUEUE = 128, 2000, 256


def main() -> None:
    """Run the phases one after the other and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--overload-minutes", type=float, default=2)
    arguments = parser.parse_args()
    require_program("wrk", "wrk")
    port = free_port()
    command = [*SERVE, f"retriever.port={port}", f"retriever.max_queue_queries={QUEUE}", "retriever.cache_mib=16"]
    with tempfile.TemporaryDirectory() as scratch, serving(command, port) as process:
        bodies = Path(scratch) / "bodies.jsonl"
        # Numbered, so that a query comes again only long after the cache has dropped it.
        queries = builtin_queries()
        lines = [json.dumps({"query": f"{query} {number}"}) + "\n" for number in range(40) for query in queries]
        bodies.write_text("".join(lines), encoding="utf-8")
        soak = Soak(port, process.pid, bodies)
        capacity = soak.phase(64, 0, 20)
        steady = partial(soak.phase, CLIENTS, soak.pause_for(0.8 * capacity["rate"]))
        rows = {
            "capacity": capacity,
            "four fifths": steady(60 * arguments.minutes),
            "overload": soak.phase(OVERLOAD_CLIENTS, 0, 60 * arguments.overload_minutes),
            "four fifths again": steady(60),
        }
    head = ("phase", "clients", "minutes", "asked/s", "answered/s", "statuses", "broken", "admitted p50 ms", "p99 ms")
    print(f"| {' | '.join(head)} | RSS MiB, first to last, most |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['clients']} | {row['seconds'] / 60:.1f} | {row['asked']:.0f} | {row['rate']:.0f} | "
            f"{row['statuses']} | {row['broken']} | ≤ {row['admitted'][0.5]:.0f} | ≤ {row['admitted'][0.99]:.0f} | "
            f"{row['rss'][0]:.0f} to {row['rss'][-1]:.0f}, {max(row['rss']):.0f} |"
        )


class Soak:
    """Loads one server; each load goes on in the list of queries where the one before it ended."""

    def __init__(self, port: int, pid: int, bodies: Path) -> None:
        self._port, self._pid, self._bodies = port, pid, bodies
        self._asked = 0

    def pause_for(self, rate: float) -> float:
        """Milliseconds between an answer and the next request with which the clients ask so much, found by trying."""
        pause = CLIENTS / rate * 1000
        for _ in range(3):
            latency = CLIENTS / self.phase(CLIENTS, pause, 10)["asked"] * 1000 - pause
            pause = max(0.0, CLIENTS / rate * 1000 - latency)
        return pause

    def phase(self, clients: int, pause: float, seconds: float) -> dict[str, Any]:
        """One load, with the server's memory and latencies while it lasts."""
        rss: list[float] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1):
                rss.append(resident_mib(self._pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        before = admitted_buckets(self._port)
        try:
            result = self._run_wrk(clients, pause, seconds)
        finally:
            ended.set()
            watcher.join()
        after = admitted_buckets(self._port)
        return {
            **result,
            "clients": clients,
            "asked": sum(result["statuses"].values()) / result["seconds"],
            "rate": result["statuses"].get("200", 0) / result["seconds"],
            "rss": rss,
            "admitted": {share: quantile(before, after, share) for share in (0.5, 0.99)},
        }

    def _run_wrk(self, clients: int, pause: float, seconds: float) -> dict[str, Any]:
        """What soak.lua prints."""
        place = {"BODIES": str(self._bodies), "PAUSE": f"{pause:.0f}", "OFFSET": str(self._asked)}
        command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
        command += ["-s", str(HERE / "soak.lua"), f"http://127.0.0.1:{self._port}/search"]
        done = subprocess.run(command, check=True, env={**os.environ, **place}, capture_output=True, text=True)
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        result: dict[str, Any] = json.loads(line.removeprefix("RESULT"))
        self._asked += sum(result["statuses"].values()) + 2 * clients
        return result


def admitted_buckets(port: int) -> dict[float, float]:
    """Cumulative counts of `/search` answered with 200, by upper bound in seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("research_retriever_request_seconds_bucket") and 'route="/search",status="200"' in line:
            found[float(line.split('le="')[1].split('"')[0])] = float(line.rsplit(" ", 1)[1])
    return found


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Upper bound, in milliseconds, of the bucket in which that share of the answers between the two lies."""
    counts = {bound: count - before.get(bound, 0) for bound, count in after.items()}
    total = max(counts.values(), default=0)
    return 1000 * min((bound for bound, count in counts.items() if count >= share * total), default=float("nan"))


def resident_mib(pid: int) -> float:
    """Memory of the server now."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024


if __name__ == "__main__":
    main()
