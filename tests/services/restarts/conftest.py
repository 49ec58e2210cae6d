"""A retriever and a policy to train against, and a run that has just ended sft, for the tests of restarts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Launch, Server, launching
from tests.support.command import ENVIRONMENT, SMALL, WAYS, command


@dataclass
class Services:
    """A retriever and a policy to train against, and a run that has just ended its supervised phase."""

    overrides: list[str]
    warmed: Path
    environment: dict[str, str]
    retriever: Server
    policy: Server


def copied(run: Path, target: Path, *left_out: str) -> None:
    """A copy of a run; its checkpoints, whose files nobody changes, are linked."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("weights", "checkpoints", "summary.json", *left_out))
    shutil.copytree(run / "checkpoints", target / "checkpoints", copy_function=os.link)


@pytest.fixture(scope="package")
def services(
    data_dir: Path,
    free_port: Callable[[], int],
    service_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Services]:
    with launching(tmp_path_factory, free_port, data_dir, service_environment) as launch:
        yield _services(launch, data_dir, free_port, service_environment, tmp_path_factory.mktemp("runs"))


def _services(
    launch: Launch, data_dir: Path, free_port: Callable[[], int], environment: dict[str, str], runs: Path
) -> Services:
    retriever = launch("retriever")
    policy = launch(
        "policy",
        f"endpoints.retriever_url={retriever.url}",
        f"policy.weights_dir={runs.parent}",
        *SMALL,
        timeout=300,
        environment=ENVIRONMENT,
    )
    overrides = [
        f"paths.data={data_dir}",
        f"endpoints.retriever_url={retriever.url}",
        f'endpoints.policy_urls=["{policy.url}"]',
        *SMALL,
    ]
    log = runs / "log"
    arguments = ["train", *overrides, f"paths.runs={runs}", f"trainer.port={free_port()}", "grpo.steps=0"]
    with command(log, arguments, WAYS[0], environment) as first:
        assert first.process.wait(300) == 0, log.read_text()
    return Services(overrides, runs / "stopped", environment, retriever, policy)
