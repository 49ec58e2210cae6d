"""The program `research` as a user meets it: help, and one clear line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.forked import run


def research(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    if arguments[:2] != ("serve", "policy"):
        return run(arguments, environment)
    # Its refusals are told by a process of its own, which a fork would leave out.
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        capture_output=True,
        text=True,
        env={**environment, "COLUMNS": "200"},
        timeout=300,
        check=False,
    )


COMMANDS = ["prepare", "index", "serve", "up", "train", "demo", "study", "ask", "eval", "inspect", "config"]


def test_help_teaches_every_command(service_environment: dict[str, str]) -> None:
    text = research("--help", environment=service_environment).stdout
    assert all(command in text for command in COMMANDS)
    assert "grpo.steps=5" in text


def test_config_prints_the_resolved_settings(service_environment: dict[str, str]) -> None:
    done = research("config", "grpo.steps=3", environment={**service_environment, "RESEARCH__SEED": "9"})
    settings = json.loads(done.stdout)
    assert (settings["grpo"]["steps"], settings["seed"]) == (3, 9)


MISTAKES: list[tuple[Sequence[str], str]] = [
    (["config", "--preset", "nope"], "known presets: "),
    (["config", "grpo.stps=3"], "grpo.stps: there is no such setting"),
    (["train", "run=../up"], "run: "),
    (["serve", "policy", "model.name=./nope"], "there is no model directory"),
    (["serve", "policy", "model.name=builtin:nope"], "run `research prepare`"),
    (["serve", "policy", "model.name=no-such-org/no-such-model"], "neither a directory nor available from the hub"),
    (["serve", "retriever", "corpus.index=nope"], "nope"),
    (["serve", "retriever", "encoder.query_prefix=other"], "prefix"),
    (["prepare", "model.name=builtin:other"], "the built-in one is"),
    (["prepare", "corpus.name=missing.jsonl", "corpus.index=x"], "missing.jsonl"),
    (["train"], "RESEARCH_ADMIN_TOKEN is not set"),
    (["train", "episode.prompt=nope"], "there is no prompt"),
    (["train", "episode.prompt=search-r1", "sft.enabled=true"], "its form is search_r1, and traces are written in"),
    (["train", "episode.temperature=0"], "makes all episodes of a group the same"),
    (["train", "episode.top_p=0.9"], "log-probabilities of the nucleus"),
    (["serve", "policy", "policy.serve=./nowhere"], "policy.serve: ./nowhere is neither"),
    (["run", "start"], "research up"),
    (["train", "questions.train=missing.jsonl"], "missing.jsonl"),
    (["train", "questions.mix={ four_hop = 1.0 }"], "four_hop"),
    (["ask", "anything?", 'endpoints.policy_urls=["http://127.0.0.1:9"]'], "research up"),
    (["eval", "endpoints.retriever_url=http://127.0.0.1:9"], "does not answer"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_clear_error(
    arguments: Sequence[str],
    message: str,
    service_environment: dict[str, str],
    data_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    settings = {
        "RESEARCH__PATHS__DATA": str(data_dir),
        "RESEARCH__PATHS__RUNS": str(tmp_path),
        **{f"RESEARCH__{name}__PORT": str(free_port()) for name in ("RETRIEVER", "POLICY", "TRAINER")},
    }
    if "RESEARCH_ADMIN_TOKEN" not in message:
        settings["RESEARCH_ADMIN_TOKEN"] = "admin-for-tests"
    done = research(*arguments, environment={**service_environment, **settings})
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
