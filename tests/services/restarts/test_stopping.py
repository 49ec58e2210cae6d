"""A signal in any phase of any command: the right code within ten seconds, one line on what was kept, nothing left.

By default each phase meets one kind of signal; with RESEARCH_WHOLE_MATRIX=1 each meets all of them. With
RESEARCH_MATRIX_FILE=path the table that docs/results/machines.md shows is written there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services.restarts.command import (
    PROMISED_SECONDS,
    WAYS,
    Command,
    Way,
    answers,
    await_condition,
    command,
    crossed,
    note,
    phase_of,
)
from tests.services.restarts.conftest import Services

FRESH = ["starting", "evaluation", "warm-up"]
RESUMED = ["rollout", "update", "publish", "checkpoint"]


@pytest.mark.parametrize(("phase", "way"), crossed([*FRESH, *RESUMED]))
def test_training_ends_in_any_phase_and_goes_on(
    services: Services, phase: str, way: Way, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port, log = free_port(), tmp_path / "log"
    arguments = ["train", *services.overrides, f"paths.runs={tmp_path}", f"trainer.port={port}", "grpo.steps=3"]
    if phase in RESUMED:
        _resumable(services.warmed, tmp_path / "stopped", supervised=phase != "rollout")
    if phase in RESUMED and phase != "rollout":
        # Supervised steps: a GRPO step of so few episodes may have nothing to learn from.
        arguments += ["control.kind=supervised", "control.seconds=30" if phase == "update" else "control.seconds=1"]
    with command(log, arguments, way, services.environment) as running:
        await_condition(phase, lambda: phase_of(port) == phase, running)
        # Routes that are no coroutines leave threads behind, which wait for more work.
        assert answers(port, "/steps")
        last = running.stop("train", phase, way, [port])
    if phase in FRESH:
        assert "has no checkpoint yet; the same command starts it anew" in last
    else:
        assert "keeps the checkpoint after step" in last
        assert "the same command goes on from there" in last


def _resumable(warmed: Path, target: Path, *, supervised: bool) -> None:
    """A copy of the run after its warm-up; the weights, which nobody writes to, are linked."""
    shutil.copytree(warmed, target, ignore=shutil.ignore_patterns("weights", "checkpoints", "summary.json"))
    shutil.copytree(warmed / "checkpoints", target / "checkpoints", copy_function=os.link)
    if supervised:
        file = target / "config.json"
        config = json.loads(file.read_text())
        config["control"]["kind"] = "supervised"
        file.write_text(json.dumps(config))


@pytest.mark.parametrize(("phase", "way"), crossed(["preparing"]))
def test_an_index_that_is_being_built_is_kept(
    phase: str, way: Way, data_dir: Path, tmp_path: Path, service_environment: dict[str, str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "models").symlink_to(data_dir / "models")
    passages = data_dir / "corpus" / "wikipedia-leads.jsonl"
    arguments = ["index", "--passages", str(passages), f"paths.data={data}", "corpus.index=stopped"]
    with command(tmp_path / "log", arguments, way, service_environment) as running:
        await_condition("the first vectors", lambda: any(data.rglob("shards/*.npy")), running)
        last = running.stop("index", phase, way, [])
    assert "the vectors made so far are kept; the same command goes on from there" in last


@pytest.mark.parametrize(("phase", "way"), crossed(["importing", "loading", "ready"]))
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
        code = running.process.wait(PROMISED_SECONDS + 5)
        seconds, left = time.monotonic() - sent, running.family()
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        note("serve policy", phase, way, code, seconds, left, last)
        # vLLM's own words at its end are its own.
        assert code == 128 + way.number, log.read_text()
        assert seconds < PROMISED_SECONDS
        assert running_before > 1
        assert not left
        assert last.startswith("stopped: ")


@pytest.mark.parametrize(("phase", "way"), crossed(["ready"]))
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


@pytest.mark.parametrize(("phase", "way"), crossed(["starting"]))
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


def test_children_do_not_outlive_a_parent_that_is_killed(
    data_dir: Path, tmp_path: Path, free_port: Callable[[], int], service_environment: dict[str, str]
) -> None:
    retriever, policy, trainer = (free_port() for _ in range(3))
    ports = [f"retriever.port={retriever}", f"policy.port={policy}", f"trainer.port={trainer}"]
    arguments = ["up", f"paths.data={data_dir}", f"paths.runs={tmp_path}", *ports]
    with command(tmp_path / "log", arguments, WAYS[1], service_environment) as running:
        await_condition("all three", lambda: answers(retriever) and answers(trainer), running)
        running.process.kill()
        running.process.wait()
        deadline = time.monotonic() + 20
        while running.family():
            assert time.monotonic() < deadline, running.family()
            time.sleep(0.1)
