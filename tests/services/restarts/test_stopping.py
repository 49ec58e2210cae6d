"""A signal in any phase of any command: the right code within ten seconds, one line on what was kept, nothing left.

By default each phase meets one kind of signal; with RESEARCH_WHOLE_MATRIX=1 each meets all of them. With
RESEARCH_MATRIX_FILE=path the table that docs/results/machines.md shows is written there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from research.settings import Settings
from services.policy.serve import SERVED_NAME
from services.policy.settings_variable import SETTINGS_VARIABLE
from tests.services.restarts.conftest import Services, copied
from tests.support.command import (
    ENVIRONMENT,
    MOST_SECONDS,
    SMALL,
    WAYS,
    WHOLE,
    Command,
    Way,
    answers,
    await_condition,
    command,
    crossed,
    note,
    phase_of,
    ports_in_a_row,
)

FRESH = ["starting", "evaluation", "sft"]
RESUMED = ["rollout", "update", "publish", "checkpoint"]
# A policy that is ready is ended by test_coming_back, too, which has to wait for one anyway.
POLICY = ["importing", "loading", *(["ready"] if os.environ.get(WHOLE) else [])]


@pytest.mark.parametrize(("phase", "way"), crossed([*FRESH, *RESUMED]))
def test_training_ends_in_any_phase_and_goes_on(
    services: Services, phase: str, way: Way, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port, log = free_port(), tmp_path / "log"
    arguments = ["train", *services.overrides, f"paths.runs={tmp_path}", f"trainer.port={port}", "grpo.steps=3"]
    if phase in RESUMED:
        # Supervised steps: a GRPO step of so few episodes may have nothing to learn from.
        kind, seconds = "none" if phase == "rollout" else "supervised", 90.0 if phase == "update" else 3.0
        _resumable(services.warmed, tmp_path / "stopped", {"kind": kind, "seconds": seconds})
        arguments += [f"ablation.kind={kind}", f"ablation.seconds={seconds}"]
    with command(log, arguments, way, services.environment, forked=phase != "starting") as running:
        await_condition(phase, lambda: phase_of(port) == phase, running)
        # Routes that are no coroutines leave threads behind, which wait for more work.
        assert answers(port, "/steps")
        last = running.stop("train", phase, way, [port])
    if phase in FRESH:
        assert "has no checkpoint yet, so the run will start over; the same command continues it" in last
    else:
        assert "keeps the checkpoint after step" in last
        assert "the same command continues it" in last


def _resumable(warmed: Path, target: Path, ablation: dict[str, Any]) -> None:
    """A copy of the run after its supervised phase."""
    copied(warmed, target)
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ablation": ablation}))


@pytest.mark.parametrize(("phase", "way"), crossed(["preparing"], first=2))
@pytest.mark.parametrize("name", ["index", "demo"])
def test_an_index_that_is_being_built_is_kept(
    name: str, phase: str, way: Way, data_dir: Path, tmp_path: Path, service_environment: dict[str, str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for prepared in ("models", "corpus"):
        (data / prepared).symlink_to(data_dir / prepared)
    arguments = [name, f"paths.data={data}", f"paths.runs={tmp_path}"]
    if name == "index":
        arguments += ["--passages", str(data / "corpus" / "wikipedia-leads.jsonl"), "corpus.index=stopped"]
    with command(tmp_path / "log", arguments, way, service_environment, forked=name == "demo") as running:
        await_condition("the first vectors", lambda: any(data.rglob("shards/*.npy")), running)
        last = running.stop(name, phase, way, [])
    kept = "what was prepared is kept" if name == "demo" else "the vectors made so far are kept"
    assert f"{kept}; the same command continues from there" in last


@pytest.mark.parametrize(("phase", "way"), crossed(POLICY))
def test_the_policy_ends(
    phase: str,
    way: Way,
    data_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    service_environment: dict[str, str],
) -> None:
    port, log = free_port(), tmp_path / "log"
    arguments = ["serve", "policy", f"paths.data={data_dir}", f"paths.runs={tmp_path}", f"policy.port={port}"]
    conditions: dict[str, Callable[[Command], bool]] = {
        "importing": lambda running: len(running.family()) > 1,
        "loading": lambda _: "EngineCore" in log.read_text(errors="replace"),
        "ready": lambda _: answers(port),
    }
    with command(log, arguments, way, service_environment) as running:
        await_condition(phase, lambda: conditions[phase](running), running)
        running_before = len(running.family())
        sent = time.monotonic()
        running.process.send_signal(way.number)
        code = running.process.wait(MOST_SECONDS)
        seconds, left = time.monotonic() - sent, running.family()
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        note("serve policy", phase, way, code, seconds, left, last)
        # vLLM's own words at its end are its own.
        assert code == 128 + way.number, log.read_text()
        assert running_before > 1
        assert not left
        assert last.startswith("stopped: ")


@pytest.fixture
def two_policies(data_dir: Path, tmp_path: Path, free_port: Callable[[], int]) -> tuple[list[str], list[str]]:
    """Arguments that serve two of them, and the names by which they are told apart."""
    port = ports_in_a_row(free_port)
    places = [f"paths.data={data_dir}", f"paths.runs={tmp_path}", f"policy.port={port}"]
    arguments = ["serve", "policy", *places, "policy.replicas=2", "policy.threads=1"]
    return arguments, [f"policy-{port}", f"policy-{port + 1}"]


def vllms(running: Command) -> list[psutil.Process]:
    return [process for process in running.family() if "services.policy.serve" in process.cmdline()]


def _port(process: psutil.Process) -> int:
    return Settings.model_validate_json(process.environ()[SETTINGS_VARIABLE]).policy.port


@pytest.mark.parametrize(("phase", "way"), crossed(["two importing"]))
def test_two_policies_end(
    phase: str,
    way: Way,
    two_policies: tuple[list[str], list[str]],
    tmp_path: Path,
    service_environment: dict[str, str],
) -> None:
    with command(tmp_path / "log", two_policies[0], way, service_environment) as running:
        await_condition(phase, lambda: len(vllms(running)) == 2, running)
        assert running.stop("serve policy", phase, way, []).startswith("stopped: ")


def test_the_death_of_one_policy_ends_the_other_and_is_told(
    two_policies: tuple[list[str], list[str]], tmp_path: Path, service_environment: dict[str, str]
) -> None:
    arguments, names = two_policies
    with command(tmp_path / "log", arguments, WAYS[1], service_environment) as running:
        # Each says its number format, under its name, before it imports vLLM.
        await_condition(
            "both", lambda: all(f"{name} | " in running.log.read_text(errors="replace") for name in names), running
        )
        (killed,) = [process for process in vllms(running) if f"policy-{_port(process)}" == names[1]]
        killed.kill()
        assert running.process.wait(60) == 137
        assert not running.family()
    last = running.log.read_text(errors="replace").strip().splitlines()[-1]
    assert last == f"the {names[1]} ended by signal 9; all 2 policy servers were ended"


@pytest.mark.parametrize(("phase", "way"), crossed(["ready"], first=1))
@pytest.mark.parametrize("service", ["retriever", "trainer"])
def test_the_small_services_end(
    service: str,
    phase: str,
    way: Way,
    data_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    service_environment: dict[str, str],
) -> None:
    port = free_port()
    arguments = ["serve", service, f"paths.data={data_dir}", f"paths.runs={tmp_path}", f"{service}.port={port}"]
    with command(tmp_path / "log", arguments, way, service_environment) as running:
        await_condition(phase, lambda: answers(port), running)
        assert running.stop(f"serve {service}", phase, way, [port]).startswith("stopped: ")


@pytest.mark.parametrize(("phase", "way"), crossed(["rollout"], first=1))
def test_a_served_trainer_ends_with_its_run(
    services: Services, phase: str, way: Way, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    _resumable(services.warmed, tmp_path / "stopped", {"kind": "none", "seconds": 3.0})
    arguments = ["serve", "trainer", *services.overrides, f"paths.runs={tmp_path}", f"trainer.port={port}"]
    arguments += ["grpo.steps=3", "ablation.kind=none", "ablation.seconds=3.0"]
    with command(tmp_path / "log", arguments, way, services.environment, forked=True) as running:
        await_condition("the trainer", lambda: answers(port), running)
        token = {"Authorization": f"Bearer {ENVIRONMENT['RESEARCH_ADMIN_TOKEN']}"}
        httpx.post(f"http://127.0.0.1:{port}/run/start", headers=token, timeout=10).raise_for_status()
        await_condition(phase, lambda: phase_of(port) == phase, running)
        last = running.stop("serve trainer", phase, way, [port])
    assert last.startswith("stopped: ")


@pytest.mark.parametrize(("phase", "way"), crossed(["starting"], first=1))
@pytest.mark.parametrize("name", ["up", "study"])
def test_what_starts_services_ends_them(
    name: str,
    phase: str,
    way: Way,
    data_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    service_environment: dict[str, str],
) -> None:
    retriever, policy, trainer = (free_port() for _ in range(3))
    ports = [f"retriever.port={retriever}", f"policy.port={policy}", f"trainer.port={trainer}"]
    arguments = [name, f"paths.data={data_dir}", f"paths.runs={tmp_path}", *ports]
    with command(tmp_path / "log", arguments, way, service_environment) as running:
        await_condition("the retriever", lambda: answers(retriever), running)
        last = running.stop(name, phase, way, [retriever, policy, trainer])
    assert last.startswith("stopped: ")
    assert not (tmp_path / "admin-token").exists()


@pytest.mark.parametrize(("phase", "way"), crossed(["sft"], first=1))
def test_the_demo_ends_with_its_services(
    phase: str,
    way: Way,
    data_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    service_environment: dict[str, str],
) -> None:
    retriever, policy, trainer = (free_port() for _ in range(3))
    ports = [f"retriever.port={retriever}", f"policy.port={policy}", f"trainer.port={trainer}"]
    arguments = ["demo", f"paths.data={data_dir}", f"paths.runs={tmp_path}", *ports, *SMALL]
    with command(tmp_path / "log", arguments, way, service_environment) as running:
        # Three services start, the machine is measured and 128 questions are asked, beside the other lanes.
        await_condition(phase, lambda: phase_of(trainer) == phase, running, 600)
        # Seen: after such a request AnyIO's threads kept the process for ever.
        assert answers(trainer, "/steps")
        assert answers(trainer, "/evaluations")
        last = running.stop("demo", phase, way, [retriever, policy, trainer])
    assert "has no checkpoint yet, so the run will start over; the same command continues it" in last


@pytest.mark.parametrize(("phase", "way"), crossed(["asking"]))
def test_the_bench_keeps_its_answers(services: Services, phase: str, way: Way, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    arguments = ["bench", "--out", str(out), "--strategy", "naive-rag", *services.overrides, "bench.per_kind=64"]
    with command(tmp_path / "log", arguments, way, services.environment, forked=True) as running:
        await_condition(
            "the first answers", lambda: any(len(f.read_text().splitlines()) > 2 for f in out.rglob("*.jsonl")), running
        )
        last = running.stop("bench", phase, way, [])
    assert f"the answers so far are in {out}; the same command continues from there" in last


def test_children_do_not_outlive_a_parent_that_is_killed(
    data_dir: Path, tmp_path: Path, free_port: Callable[[], int], service_environment: dict[str, str]
) -> None:
    retriever, policy, trainer = (free_port() for _ in range(3))
    ports = [f"retriever.port={retriever}", f"policy.port={policy}", f"trainer.port={trainer}"]
    arguments = ["up", f"paths.data={data_dir}", f"paths.runs={tmp_path}", *ports]
    with command(tmp_path / "log", arguments, WAYS[1], service_environment) as running:
        await_condition("all three", lambda: all(answers(port) for port in (retriever, policy, trainer)), running)
        assert "VLLM::EngineCore" in {name(process) for process in running.family()}
        running.process.kill()
        running.process.wait()
        await_end_of_all(running)


def test_the_engine_does_not_outlive_a_server_that_is_killed(
    data_dir: Path, tmp_path: Path, free_port: Callable[[], int], service_environment: dict[str, str]
) -> None:
    port = free_port()
    arguments = [
        "serve",
        "policy",
        f"paths.data={data_dir}",
        f"paths.runs={tmp_path}",
        f"policy.port={port}",
        "policy.threads=2",
    ]
    with command(tmp_path / "log", arguments, WAYS[1], service_environment) as running:
        await_condition("the policy", lambda: answers(port), running)
        [server] = vllms(running)
        [engine] = [process for process in server.children() if name(process) == "VLLM::EngineCore"]
        # Spawned ones have a helper of Python's beside them. Threads are counted as torch is imported: before the fork.
        assert server.children(recursive=True) == [engine]
        assert server.environ()["OMP_NUM_THREADS"] == "2"
        # With threads of OpenMP that the parent had started, the fork would compute for ever.
        body = {"model": SERVED_NAME, "prompt": "Paris is the capital of", "max_tokens": 8}
        httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=120).raise_for_status()
        # Otherwise whoever comes after the server would find its port taken.
        assert port in {each.laddr.port for each in server.net_connections() if each.status == psutil.CONN_LISTEN}
        assert port not in {each.laddr.port for each in engine.net_connections() if each.laddr}
        server.kill()
        assert running.process.wait(60) == 137
        await_end_of_all(running)


def await_end_of_all(running: Command) -> None:
    deadline = time.monotonic() + 60
    while left := running.family():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def name(process: psutil.Process) -> str:
    """As `ps` has it, which vLLM's processes choose themselves."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""
