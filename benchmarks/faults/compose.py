"""Faults of containers while a run trains: each service killed, hung, frozen and restarted, and the whole engine.

    docker compose up -d --wait && docker compose exec trainer research run start
    python -m benchmarks.faults.compose > table.md

Prints a row of a Markdown table per fault: what Docker did, the seconds until all three services were healthy again,
and the steps of the run at the fault and when it had finished another two. Nobody helps but where a column says so. The
same environment as for `docker compose` is needed (RESEARCH_SETTINGS and so on), and a run with steps enough: two each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import httpx

SERVICES = ("retriever", "policy", "trainer")
# What a command line of the service's own process has in it, its watcher's has not.
PROCESS = {"retriever": "serve retriever", "policy": "services.policy.serve", "trainer": "serve trainer"}
FROZEN_SECONDS = 45
PATIENCE_SECONDS = 1200
SIGNAL = """
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    words = open(f"/proc/{pid}/cmdline").read().replace("\\0", " ")
    if sys.argv[1] in words and "--watch" not in words and int(pid) != os.getpid():
        os.kill(int(pid), int(sys.argv[2]))
        print(pid)
"""


@dataclass(frozen=True)
class Fault:
    """What is done to a service, and who helps."""

    name: str
    act: Callable[[str], object]
    help: str = "nobody"


def compose(*arguments: str) -> str:
    return subprocess.run(["docker", "compose", *arguments], check=True, capture_output=True, text=True).stdout


def inspect(service: str) -> dict[str, object]:
    """Health, start and number of restarts of a container."""
    name = compose("ps", "--all", "--quiet", service).strip()
    found = subprocess.run(["docker", "inspect", name], check=True, capture_output=True, text=True).stdout
    state = json.loads(found)[0]
    health = state["State"].get("Health", {}).get("Status")
    return {"health": health, "started": state["State"]["StartedAt"], "restarts": state["RestartCount"]}


def send(service: str, number: int, words: str | None = None) -> None:
    done = compose("exec", "-T", service, "python", "-c", SIGNAL, words or PROCESS[service], str(number))
    if not done.strip():
        sys.exit(f"no process of the {service} was found")


def freeze(service: str) -> None:
    compose("pause", service)
    time.sleep(FROZEN_SECONDS)
    compose("unpause", service)


def kill_and_start(service: str) -> None:
    compose("kill", service)
    compose("start", service)


FAULTS = [
    Fault("its process killed (SIGKILL, as the kernel does without memory)", lambda service: send(service, 9)),
    Fault("its process hung (SIGSTOP)", lambda service: send(service, 19)),
    Fault(f"frozen for {FROZEN_SECONDS} s (docker pause)", freeze, "unpaused"),
    Fault("docker restart", lambda service: compose("restart", service)),
    Fault("docker kill", kill_and_start, "docker start: Docker takes a kill for a wish"),
]


def status() -> dict[str, object]:
    """What the trainer says of its run; empty while it does not answer."""
    try:
        found: dict[str, object] = httpx.get("http://127.0.0.1:8002/status", timeout=5).raise_for_status().json()
    except httpx.HTTPError:
        return {}
    return found


def steps() -> int:
    """Finished steps; -1 while the trainer does not answer."""
    try:
        finished = httpx.get("http://127.0.0.1:8002/steps", timeout=5).raise_for_status().json()
        return int(finished[-1]["step"]) if finished else 0
    except httpx.HTTPError:
        return -1


def await_condition(what: str, condition: Callable[[], bool]) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE_SECONDS:
            sys.exit(f"{what}: not within {PATIENCE_SECONDS} s; {status()}")
        time.sleep(1)
    return time.monotonic() - began


def healthy() -> bool:
    return all(inspect(service)["health"] == "healthy" for service in SERVICES)


def row(name: str, service: str, act: Callable[[], object], helper: str) -> None:
    """Do it, wait for two more steps, and tell what happened."""
    await_condition("before the fault", lambda: healthy() and bool(status()))
    before, done, phase = {each: inspect(each) for each in SERVICES}, steps(), status().get("phase")
    began = time.monotonic()
    act()
    changed = lambda: any(inspect(each)["started"] != before[each]["started"] for each in SERVICES)  # noqa: E731
    frozen = "frozen" in name
    noticed = 0.0 if frozen else await_condition("a restart", changed)
    await_condition("health", healthy)
    well = time.monotonic() - began
    await_condition("two more steps", lambda: steps() >= done + 2)
    again = time.monotonic() - began
    restarted = [each for each in SERVICES if inspect(each)["started"] != before[each]["started"]]
    cells = [name, service, str(phase), helper, ", ".join(restarted) or "none", f"{noticed:.0f}", f"{well:.0f}"]
    print("| " + " | ".join([*cells, f"{done} → {steps()} after {again:.0f} s"]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", help="a command that restarts the engine, such as: systemctl restart docker")
    parser.add_argument("--only", help="a word of the fault's name")
    chosen = parser.parse_args()
    print("| Fault | Service | In phase | Who helped | Restarted | Restart after, s | All healthy after, s | Steps |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for fault in FAULTS:
        for service in SERVICES:
            if not chosen.only or chosen.only in fault.name:
                row(fault.name, service, partial(fault.act, service), fault.help)
    if not chosen.only or chosen.only in "engine silent":
        stop = lambda: send("policy", 19, "EngineCore")  # noqa: E731
        row("vLLM's engine hung (SIGSTOP)", "policy", stop, "nobody")
    if chosen.engine:
        row(
            "the Docker engine restarted",
            "all",
            lambda: subprocess.run(chosen.engine, shell=True, check=True),
            "nobody",
        )


if __name__ == "__main__":
    main()
