"""Queries a second over HTTP, as shares of what encoder and index alone can do in the same run.

Run: python -m benchmarks.retriever.load [--mix] [--seconds 10] [--rounds 3]; needs `research prepare` and wrk.
Without --mix every query is another one and nothing is cached. With it, groups of eight ask about as the groups of a
GRPO step do (of the searches of a step of the study, 50 to 66 % differ), with cache and merging on and off.
Writes a table in Markdown. Each round measures everything once, so that a change of the machine's mood meets all alike;
ratios are taken within a round, and the median of the rounds is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.programs import require_program

HERE = Path(__file__).resolve().parent
CLIENTS = (1, 32, 128)
SERVE = [sys.executable, "-m", "cli.main", "serve", "retriever"]
USUAL_NAME = "the usual server"
USUAL = [sys.executable, "-m", "benchmarks.retriever.usual_server"]


@dataclass(frozen=True)
class Load:
    """What wrk saw: answers a second, latencies in milliseconds, answers that were no 200."""

    rate: float
    p50: float
    p95: float
    p99: float
    failed: int
    asked: int


@dataclass(frozen=True)
class Bound:
    """Queries a second in one process, nothing around them: encode and search in turn, and encoding alone."""

    rate: float
    encoding: float


@dataclass(frozen=True)
class Round:
    """Everything once; the bound is the mean of before and after."""

    bound: Bound
    loads: dict[tuple[str, int], Load]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", action="store_true", help="ask as the groups of GRPO do")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="settings for all, such as retriever.threads=2")
    arguments = parser.parse_args()
    require_program("wrk", "wrk")
    with tempfile.TemporaryDirectory() as scratch:
        bodies = Path(scratch) / "bodies.jsonl"
        queries = grpo_mix(builtin_queries()) if arguments.mix else builtin_queries()
        bodies.write_text("".join(json.dumps({"query": query}) + "\n" for query in queries), encoding="utf-8")
        plain = [*SERVE, *arguments.overrides, "retriever.cache_mib=0"]
        kinds = {"ours, no cache": plain, USUAL_NAME: USUAL}
        if arguments.mix:
            kinds["ours"] = [*SERVE, *arguments.overrides]
            kinds["ours, no cache, no merging"] = [*plain, "retriever.coalesce=false"]
        rounds = [
            measure(kinds, bodies, arguments.seconds, arguments.overrides, progress=f"{number + 1}/{arguments.rounds}")
            for number in range(arguments.rounds)
        ]
    print(table(kinds, rounds, queries))


def measure(kinds: dict[str, list[str]], bodies: Path, seconds: int, overrides: list[str], progress: str) -> Round:
    """Measure the bound, every server under every load, and the bound again."""
    before = bound(bodies, overrides)
    loads: dict[tuple[str, int], Load] = {}
    for kind, command in kinds.items():
        port = free_port()
        ported = [str(port), *overrides] if kind == USUAL_NAME else [f"retriever.port={port}"]
        asked = 0
        with serving([*command, *ported], port):
            for clients in CLIENTS:
                loads[kind, clients] = load(port, bodies, clients, seconds, asked)
                asked += loads[kind, clients].asked
                print(f"round {progress}: {kind}, {clients} clients: {loads[kind, clients]}", file=sys.stderr)
    after = bound(bodies, overrides)
    return Round(Bound((before.rate + after.rate) / 2, (before.encoding + after.encoding) / 2), loads)


def bound(bodies: Path, overrides: list[str]) -> Bound:
    """Queries a second of encoder and index in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.retriever.bound", str(bodies), "1.5", *overrides]
    best = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(f"bound: {best}", file=sys.stderr)
    return Bound(best["rate"], best["encoding alone"])


def load(port: int, bodies: Path, clients: int, seconds: int, offset: int) -> Load:
    """Closed loop: so many connections, each sends its next query when it has the answer to the last."""
    warm = wrk(port, bodies, clients, 2, offset)[0]
    requests, duration, p50, p95, p99, refused, broken = wrk(port, bodies, clients, seconds, offset + warm + clients)
    rate = (requests - refused) / duration * 1e6
    return Load(rate, p50 / 1e3, p95 / 1e3, p99 / 1e3, refused + broken, warm + requests + 2 * clients)


def wrk(port: int, bodies: Path, clients: int, seconds: int, offset: int) -> list[int]:
    """The numbers that wrk.lua prints."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(HERE / "wrk.lua")]
    environment = {**os.environ, "BODIES": str(bodies), "OFFSET": str(offset)}
    command.append(f"http://127.0.0.1:{port}/search")
    output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    return [int(n) for n in next(line for line in output.splitlines() if line.startswith("RESULT")).split()[1:]]


def table(kinds: dict[str, list[str]], rounds: list[Round], queries: list[str]) -> str:
    """Medians over the rounds, in Markdown."""
    bounds = [each.bound for each in rounds]
    lines = [
        f"{len(queries)} queries, {len(set(queries))} different; the bound is {median(b.rate for b in bounds):.0f} "
        f"queries/s, encoding alone {median(b.encoding for b in bounds):.0f}",
        "",
        "| server | clients | queries/s | of the bound | of encoding alone | × the usual server "
        "| p50 ms | p95 ms | p99 ms | failed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        for clients in CLIENTS:
            own = [each.loads[kind, clients] for each in rounds]
            share = median(each.loads[kind, clients].rate / each.bound.rate for each in rounds)
            encoding = median(each.loads[kind, clients].rate / each.bound.encoding for each in rounds)
            times = median(each.loads[kind, clients].rate / each.loads[USUAL_NAME, clients].rate for each in rounds)
            numbers = [f"{median(getattr(each, name) for each in own):.1f}" for name in ("p50", "p95", "p99")]
            lines.append(
                f"| {kind} | {clients} | {median(each.rate for each in own):.0f} | {share:.2f} | {encoding:.2f} "
                f"| {times:.2f} | "
                f"{' | '.join(numbers)} | {sum(each.failed for each in own)} |"
            )
    return "\n".join(lines)


def builtin_queries() -> list[str]:
    """Every search that the built-in questions need, once each, in a fixed random order."""
    queries: set[str] = set()
    for path in sorted(Path("data/questions").glob("builtin-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            queries.update(hop["query"] for hop in json.loads(line)["hops"])
    ordered = sorted(queries)
    random.Random(0).shuffle(ordered)
    return ordered


def grpo_mix(queries: list[str]) -> list[str]:
    """Groups of eight around each query: four ask it as it stands, the others with one word more or less."""
    rng = random.Random(1)
    words = [word for query in queries for word in query.split()]
    mixed: list[str] = []
    for query in queries:
        parts = query.split()
        group = [query] * 4 + [f"{query} {rng.choice(words)}" for _ in range(3)] + [" ".join(parts[:-1]) or query]
        rng.shuffle(group)
        mixed += group
    return mixed


@contextmanager
def serving(command: list[str], port: int, seconds: float = 60) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server and wait until it is ready."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + seconds
            while not ready(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{command} did not start: {log.read().decode()[-800:]}")
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            process.wait()


def ready(port: int) -> bool:
    """Whether the server says so."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """A port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
