"""Services return as they were: a trainer to its run, a policy to the weights that the run has published."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.services.restarts.conftest import Services, copied
from tests.support.command import (
    ENVIRONMENT,
    MOST_SECONDS,
    SMALL,
    WAYS,
    Command,
    answers,
    await_condition,
    command,
    local,
)

STEPS = 2
TOKEN = {"Authorization": f"Bearer {ENVIRONMENT['RESEARCH_ADMIN_TOKEN']}"}


def status(port: int) -> dict[str, Any]:
    found: dict[str, Any] = local(port, "/status", timeout=10).json()
    return found


def order(port: int, what: str) -> None:
    httpx.post(f"http://127.0.0.1:{port}/run/{what}", headers=TOKEN, timeout=10).raise_for_status()


def kill(running: Command) -> None:
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait()


def test_a_trainer_that_is_killed_goes_on_by_itself_and_one_that_was_paused_does_not(
    services: Services, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    run, port = tmp_path / "stopped", free_port()
    copied(services.warmed, run)
    arguments = ["serve", "trainer", *services.overrides, f"paths.runs={tmp_path}", f"trainer.port={port}"]
    arguments += [f"grpo.steps={STEPS}"]

    def trainer(number: int) -> Any:
        return command(tmp_path / f"log-{number}", arguments, WAYS[1], services.environment, forked=number > 1)

    def in_phase(phase: str, step: int) -> bool:
        return answers(port) and (status(port)["phase"], status(port)["step"]) == (phase, step)

    with trainer(1) as first:
        await_condition("the trainer", lambda: answers(port), first)
        assert status(port)["phase"] == "idle"
        assert status(port)["seconds_left"] > 0
        order(port, "start")
        await_condition("a rollout", lambda: in_phase("rollout", 1), first)
        kill(first)
    with trainer(2) as second:
        await_condition("the rollout after the kill", lambda: in_phase("rollout", 1), second)
        assert "was under way when this trainer ended; it continues" in "\n".join(status(port)["lines"])
        order(port, "pause")
        await_condition("the pause", lambda: status(port)["phase"] == "paused", second)
        paused_at = status(port)["step"]
        kill(second)
    with trainer(3) as third:
        await_condition("the trainer", lambda: answers(port), third)
        assert status(port)["phase"] == "paused"
        assert "was paused on purpose" in "\n".join(status(port)["lines"])
        order(port, "start")
        await_condition("the end", lambda: status(port)["phase"] == "finished", third)
        third.process.terminate()
        assert third.process.wait(60) == 143
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2], f"paused after step {paused_at}"
    with trainer(4) as fourth:
        await_condition("the trainer", lambda: answers(port), fourth)
        assert status(port)["phase"] == "finished"


def test_a_run_waits_for_a_policy_that_is_away_when_weights_are_published(
    services: Services, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port, policy_port = free_port(), free_port()
    copied(services.warmed, tmp_path / "stopped")
    away = f'endpoints.policy_urls=["http://127.0.0.1:{policy_port}"]'
    arguments = ["train", *services.overrides, away, f"paths.runs={tmp_path}", f"trainer.port={port}", "grpo.steps=1"]
    with command(tmp_path / "log", arguments, WAYS[1], services.environment, forked=True) as running:
        await_condition("the wait", lambda: answers(port) and bool(status(port)["waiting_for"]), running)
        assert status(port)["phase"] == "publish"
        assert "the policy" in status(port)["waiting_for"]
        policy = ["serve", "policy", *services.overrides, f"paths.runs={tmp_path}", f"policy.port={policy_port}"]
        with command(tmp_path / "policy-log", policy, WAYS[1], services.environment) as served:
            await_condition("the policy", lambda: answers(policy_port), served)
            assert running.process.wait(600) == 0, running.log.read_text()
            info = httpx.get(f"http://127.0.0.1:{policy_port}/info", timeout=10).json()
            assert info["trained"]
            assert info["run"] == "stopped"
    assert "training pauses: the policy" in running.log.read_text()


def test_a_policy_serves_the_newest_good_weights_of_its_run_and_says_how_good(
    services: Services, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    run, port = tmp_path / "stopped", free_port()
    shutil.copytree(services.warmed, run, ignore=shutil.ignore_patterns("checkpoints"))
    assert json.loads((run / "config.json").read_text())["number_format"]["name"] in ("bfloat16", "float32")
    newest = run / "weights" / "version-000002"
    shutil.copytree(run / "weights" / "version-000001", newest)
    weights = newest / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    arguments = ["serve", "policy", *services.overrides, f"paths.runs={tmp_path}", f"policy.port={port}", *SMALL]
    with command(tmp_path / "log", arguments, WAYS[1], services.environment) as running:
        await_condition("the policy", lambda: answers(port), running)
        info = httpx.get(f"http://127.0.0.1:{port}/info", timeout=10).json()
        assert (info["weight_version"], info["run"], info["trained"], info["notice"]) == ("1", "stopped", True, "")
        assert info["quality"]["evaluation"] == "sft"
        assert info["quality"]["n"] == {"one_hop": 2}
        assert info["dtype"] in ("bfloat16", "float32")
        assert info["number_format"].startswith(f"number format: {info['dtype']}")
        answer = httpx.post(
            f"http://127.0.0.1:{port}/answer", json={"question": "Who painted The Starry Night?"}, timeout=120
        ).raise_for_status()
        assert answer.json()["weight_versions"] == ["1"]
        assert answer.headers["Research-Weight-Version"] == "1"
        assert "Research-Notice" not in answer.headers
        running.family()
        running.process.terminate()
        assert running.process.wait(MOST_SECONDS) == 143
        assert not running.family()
    assert "model.safetensors has a different checksum than when it was written" in running.log.read_text()
