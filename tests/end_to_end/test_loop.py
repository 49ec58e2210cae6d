"""The whole line with all real parts: train, be killed, go on, sit out an outage, finish, and answer."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from playwright.sync_api import Page

from tests.conftest import Server, server_end, started
from tests.support.browser import CHROMIUM, browser_page
from tests.support.command import local
from tests.support.forked import Forked

Running = TypeVar("Running", subprocess.Popen[bytes], Forked)
ENVIRONMENT = {"RESEARCH_ADMIN_TOKEN": "admin-for-tests"}
STEPS, GROUPS, GROUP_SIZE = 4, 3, 4
SMALL = [
    "run=line",
    f"grpo.steps={STEPS}",
    f"grpo.questions_per_step={GROUPS}",
    f"grpo.group_size={GROUP_SIZE}",
    "sft.traces={ one_hop = 24, two_hop = 12 }",
    "sft.steps=8",
    "evaluation.per_kind={ one_hop = 4, two_hop = 4 }",
    "checkpoints.interval=1",
    "episode.retries=1",
    "episode.search_timeout=5",
]


@dataclass
class Line:
    """Retriever and policy, and how to start a trainer against them."""

    retriever: Server
    policy: Server
    run: Path
    overrides: list[str]
    port: int
    environment: dict[str, str]
    start_retriever_again: Callable[[], Server]
    start_policy_again: Callable[[], Server]

    def start_trainer(self) -> subprocess.Popen[bytes]:
        arguments = ["train", *self.overrides]
        return started(arguments, self.run.parent / "trainer.log", {**self.environment, **ENVIRONMENT})

    def start_trainer_again(self) -> Forked:
        """What follows the imports is the same."""
        arguments = ["train", *self.overrides]
        return Forked(arguments, self.run.parent / "trainer.log", {**self.environment, **ENVIRONMENT})

    def log(self) -> str:
        return (self.run.parent / "trainer.log").read_text()

    def steps(self) -> list[dict[str, Any]]:
        path = self.run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def is_sampling(self) -> bool:
        """Whether episodes of a step are under way: the phase begins before them, with a look at the services."""
        if self.status().get("phase") != "rollout":
            return False
        metrics = local(int(self.policy.url.rpartition(":")[2]), "/metrics", timeout=60).text
        lines = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running{")]
        return any(float(line.rsplit(" ", 1)[1]) for line in lines)

    def status(self) -> dict[str, Any]:
        with contextlib.suppress(httpx.HTTPError):
            status: dict[str, Any] = local(self.port, "/status", timeout=60).json()
            return status
        return {}


@pytest.fixture
def line(
    launch: Any,
    tmp_path: Path,
    data_dir: Path,
    free_port: Callable[[], int],
    service_environment: dict[str, str],
) -> Line:
    port = free_port()

    def start_retriever(forked: bool = True) -> Server:
        server: Server = launch("retriever", port=port, forked=forked)
        return server

    retriever = start_retriever(forked=False)
    runs = tmp_path / "runs"
    runs.mkdir()
    shared = [f"paths.runs={runs}", *SMALL]
    policy_port = free_port()

    def start_policy() -> Server:
        server: Server = launch(
            "policy",
            f"policy.weights_dir={runs}",
            f"endpoints.retriever_url={retriever.url}",
            f"endpoints.trainer_url=http://127.0.0.1:{trainer_port}",
            *shared,
            timeout=300,
            environment=ENVIRONMENT,
            port=policy_port,
            forked=False,
        )
        return server

    trainer_port = free_port()
    policy = start_policy()
    overrides = [
        f"paths.data={data_dir}",
        f"trainer.port={trainer_port}",
        f"endpoints.retriever_url={retriever.url}",
        f'endpoints.policy_urls=["{policy.url}"]',
        *shared,
    ]
    return Line(
        retriever,
        policy,
        runs / "line",
        overrides,
        trainer_port,
        service_environment,
        start_retriever,
        start_policy,
    )


@pytest.fixture
def page(line: Line) -> Iterator[Page | None]:
    """The page to ask from, which somebody opens before training and keeps open; None without a browser."""
    if CHROMIUM is None:
        yield None
        return
    with browser_page(line.policy.url) as page:
        yield page


@contextlib.contextmanager
def ended(process: Running) -> Iterator[Running]:
    try:
        yield process
    finally:
        server_end(process)


def await_condition(
    what: str,
    condition: Callable[[], bool],
    line: Line,
    process: subprocess.Popen[bytes] | Forked,
    timeout: float = 400,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        meanwhile()
        if condition():
            return
        if process.poll() is not None:
            pytest.fail(f"the trainer ended with {process.returncode} before {what}:\n{line.log()}")
        time.sleep(0.1)
    pytest.fail(f"{what} did not come within {timeout} s:\n{line.log()}")


def test_a_run_survives_a_kill_and_outages_of_both_services_finishes_and_answers(line: Line, page: Page | None) -> None:
    if page:
        page.get_by_text("untrained: it will not search").wait_for()
    shown: list[bool] = []

    def look_at_the_page() -> None:
        if page:
            shown.append(page.get_by_text("In training: ").is_visible())

    with ended(line.start_trainer()) as first:
        # In the middle of step 2: its episodes are under way and step 1 is in a checkpoint.
        await_condition(
            "step 2",
            lambda: (
                len(line.steps()) == 1 and line.status().get("phase") == "rollout" and line.status().get("step") == 2
            ),
            line,
            first,
            meanwhile=look_at_the_page,
        )
        assert page is None or any(shown)
        os.kill(first.pid, 9)
        first.wait()

    with ended(line.start_trainer_again()) as second:
        await_condition("the resumption", lambda: "continues after step 1" in line.log(), line, second)
        await_condition("its rollout", line.is_sampling, line, second)
        server_end(line.retriever.process)
        await_condition("the pause", lambda: bool(line.status().get("waiting_for")), line, second)
        _answer_is_503_soon(line)
        line.start_retriever_again()

        await_condition(
            "the rollout of step 3",
            lambda: line.status().get("step") == 3 and line.is_sampling(),
            line,
            second,
        )
        os.killpg(line.policy.process.pid, signal.SIGKILL)
        line.policy.process.wait()
        await_condition("the second pause", lambda: "training pauses: the policy" in line.log(), line, second)
        line.start_policy_again()  # it comes back with the untouched model
        second.wait(timeout=1500)
        assert second.returncode == 0, line.log()
    log = line.log()
    assert "training pauses: the retriever" in log
    assert "training continues" in log

    _summary_is_whole(line)
    _no_episode_was_lost_or_scored_for_an_outage(line)
    _every_token_came_from_the_published_weights(line)
    _the_policy_answers_with_the_last_weights(line)
    if page:
        _the_page_asks_the_last_weights(line, page)


def _answer_is_503_soon(line: Line) -> None:
    started = time.monotonic()
    answers = [
        httpx.post(f"{line.policy.url}/answer", json={"question": question}, timeout=120)
        for question in ("Who painted The Starry Night?", "In which year was Ulysses published?")
    ]
    assert 503 in [answer.status_code for answer in answers], [answer.text for answer in answers]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["error"] == "service_unavailable"
    assert "the retriever" in refused.json()["message"]
    assert time.monotonic() - started < 200


def _summary_is_whole(line: Line) -> None:
    summary = json.loads((line.run / "summary.json").read_text())
    assert summary["steps"] == STEPS
    for name in ("reward_per_step", "weight_versions", "searches_per_episode"):
        assert len(summary[name]) == STEPS, name
    versions = summary["weight_versions"]
    assert versions == sorted(versions)
    for stage in ("before", "after"):
        for kind in ("one_hop", "two_hop"):
            figures = summary["eval"][stage][kind]
            assert figures["n"] == 4
            assert 0 <= figures["em"] <= figures["f1"] <= 1
    assert summary["eval"]["after"]["one_hop"]["well_formed"] > summary["eval"]["before"]["one_hop"]["well_formed"]
    assert {"rollout", "evaluation", "publish", "sft"} <= summary["seconds"].keys()
    assert (line.run / "training.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(line.run.rglob("*.partial"))


def _no_episode_was_lost_or_scored_for_an_outage(line: Line) -> None:
    assert [entry["step"] for entry in line.steps()] == list(range(1, STEPS + 1))
    assert sum(entry["infra_errors"] for entry in line.steps()) > 0
    for step in range(1, STEPS + 1):
        with gzip.open(line.run / "episodes" / f"step-{step:06d}.jsonl.gz", "rt") as lines:
            episodes = [json.loads(text) for text in lines]
        assert len(episodes) == GROUPS * GROUP_SIZE
        for record in episodes:
            episode = record["episode"]
            # Every search that was asked for was answered: its turn is followed by a result of the retriever.
            assert all(turn["result"] for turn in episode["turns"] if turn["query"])
            assert len(episode["token_ids"]) == len(episode["sampled"]) == len(episode["versions"])


def _every_token_came_from_the_published_weights(line: Line) -> None:
    published = 1  # by the supervised phase
    for entry in line.steps():
        with gzip.open(line.run / "episodes" / f"step-{entry['step']:06d}.jsonl.gz", "rt") as lines:
            written = {version for text in lines for version in json.loads(text)["episode"]["versions"] if version}
        assert written == {str(published)}, f"step {entry['step']}"
        published = entry["version"]
    with gzip.open(line.run / "evaluations" / "after.jsonl.gz", "rt") as lines:
        written = {version for text in lines for version in json.loads(text)["episode"]["versions"] if version}
    assert written == {str(published)}


def _the_policy_answers_with_the_last_weights(line: Line) -> None:
    answer = httpx.post(
        f"{line.policy.url}/answer", json={"question": "Who painted The Starry Night?"}, timeout=120
    ).raise_for_status()
    body = answer.json()
    assert body["weight_versions"] == [str(line.steps()[-1]["version"])]
    assert [step["kind"] for step in body["trace"]][:3] == ["think", "search", "result"]
    assert body["passages"]
    assert body["usage"]["searches"] >= 1


def _the_page_asks_the_last_weights(line: Line, page: Page) -> None:
    version = line.steps()[-1]["version"]
    page.get_by_text(f"weights {version} of the run line").wait_for()
    page.get_by_text("untrained").wait_for(state="hidden")
    page.get_by_label("Question").fill("Who painted The Starry Night?")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text(f"weights {version} · read: ").wait_for()
