"""Ten times as many clients as a service admits: what becomes of those that it admits, and of its memory?

Run: python -m benchmarks.load.overload [--seconds 120] [--services retriever policy trainer]; starts the services,
and needs `research prepare`. Before and after, a tenth of the clients do the same for half the time. Clients ask again
as soon as they are answered; those that are refused come again after a second. A request to the retriever has as many
queries as it may have, each another one, so that eight fill its queue.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.policy.overload import ADMITTED, TIMES, ask_for, row
from benchmarks.policy.services import policy_and_retriever
from benchmarks.retriever.load import SERVE, builtin_queries, free_port, serving

_QUERIES = 512
_FILLING = 8
_BUSY = 16


@dataclass(frozen=True)
class Load:
    """What is asked of a service: where, what, by how many clients, and how many each request counts."""

    url: str
    pid: int
    bodies: list[dict[str, Any] | None]
    clients: int
    each: int = 1


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--services", nargs="+", default=list(LOADS), choices=list(LOADS))
    arguments = parser.parse_args()
    print("| route | clients | goodput/s | statuses | admitted p50 s | p99 s | RSS MiB, first to last, most |")
    print("|---|---|---|---|---|---|---|")
    for service in arguments.services:
        with LOADS[service]() as load:
            for times, share in ((1, 0.5), (TIMES, 1.0), (1, 0.5)):
                clients = times * load.clients
                found = asyncio.run(ask_for(load.url, load.pid, load.bodies, clients, arguments.seconds * share))
                path = load.url.partition("//")[2].partition("/")[2]
                print(f"| {service} `/{path}` | {clients} | {row(found, load.each)} |", flush=True)


@contextmanager
def retriever() -> Iterator[Load]:
    """`/search` with whole lists of queries, which no cache has."""
    port = free_port()
    words = itertools.count()
    known = builtin_queries()
    bodies: list[dict[str, Any] | None] = [
        {"queries": [f"{known[next(words) % len(known)]} {next(words)}" for _ in range(_QUERIES)]} for _ in range(400)
    ]
    with serving([*SERVE, f"retriever.port={port}", "retriever.cache_mib=0"], port, seconds=300) as process:
        yield Load(f"http://127.0.0.1:{port}/search", process.pid, bodies, _FILLING, _QUERIES)


@contextmanager
def policy() -> Iterator[Load]:
    """`/answer` to the built-in questions."""
    lines = Path("data/questions/builtin-held_out.jsonl").read_text(encoding="utf-8").splitlines()
    bodies: list[dict[str, Any] | None] = [{"question": json.loads(line)["text"]} for line in lines]
    settings = ("model.name=builtin:smollm2-135m-instruct", f"policy.answer_concurrency={ADMITTED}")
    with policy_and_retriever(*settings) as (url, process):
        yield Load(f"{url}/answer", process.pid, bodies, ADMITTED)


@contextmanager
def trainer() -> Iterator[Load]:
    """`/status`, which the page asks for every two seconds."""
    port = free_port()
    with serving([*SERVE[:-1], "trainer", f"trainer.port={port}"], port, seconds=300) as process:
        yield Load(f"http://127.0.0.1:{port}/status", process.pid, [None], _BUSY)


LOADS = {"retriever": retriever, "policy": policy, "trainer": trainer}


if __name__ == "__main__":
    main()
