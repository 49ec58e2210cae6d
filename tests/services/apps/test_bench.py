"""The bench with a real policy and a real retriever: killed and gone on, against `/answer`, judged, guarded.

The model is the built-in one, untrained; a prompt with two worked examples makes it search. One question at a time and
weights in float32, so that equal prompts have equal answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from rich.console import Console

from apps.bench.run import run_bench
from research.bench.records import read_records
from research.bench.runs import VERDICTS
from research.config import load_settings
from research.errors import ConfigurationError
from research.schemas import StrategyName
from research.settings import Settings
from research.strategies import STRATEGIES
from tests.conftest import REPOSITORY, Launch, Server
from tests.support.forked import Forked

FEW_SHOT = Path(__file__).parents[2] / "support" / "few_shot.txt"
ADMIN = "admin-for-tests"
ASKED = 2
# What the untrained model says is long and matters to nobody here.
SHORT = "episode.max_turn_tokens=48"
ALL = cast("tuple[StrategyName, ...]", STRATEGIES)


@dataclass(frozen=True)
class Bench:
    """Services, and how the bench finds them."""

    policy: Server
    retriever: Server
    data: Path
    weights: Path

    def overrides(self, *more: str) -> list[str]:
        return [
            f"paths.data={self.data}",
            f"endpoints.retriever_url={self.retriever.url}",
            f'endpoints.policy_urls=["{self.policy.url}"]',
            f"episode.prompt={FEW_SHOT}",
            SHORT,
            "bench.per_kind={ one_hop = 1, two_hop = 1 }",
            "policy.max_num_seqs=1",
            *more,
        ]

    def settings(self, *more: str) -> Settings:
        return load_settings("quickstart-cpu", self.overrides(*more))

    def run(self, out: Path, *more: str, strategies: Sequence[StrategyName] = ALL) -> str:
        """Run the bench in this process; returns what it printed."""
        console = Console(record=True, width=200, file=(out.parent / "console.txt").open("w"))
        asyncio.run(run_bench(self.settings(*more), strategies, out, ["research", "bench"], console))
        return console.export_text()

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.policy.url, timeout=120)


@pytest.fixture(scope="module")
def bench(launch: Launch, shared_retriever: Server, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    weights = tmp_path_factory.mktemp("weights")
    policy = launch(
        "policy",
        f"endpoints.retriever_url={shared_retriever.url}",
        f"policy.weights_dir={weights}",
        f"episode.prompt={FEW_SHOT}",
        SHORT,
        "model.dtype=float32",
        timeout=300,
        environment={"RESEARCH_ADMIN_TOKEN": ADMIN},
    )
    return Bench(policy, shared_retriever, data_dir, weights)


@pytest.fixture(scope="module")
def finished(bench: Bench, tmp_path_factory: pytest.TempPathFactory, service_environment: dict[str, str]) -> Path:
    """The directory of a bench that was killed twice and went on each time."""
    out = tmp_path_factory.mktemp("bench") / "out"
    for kept in (ASKED + 2, 3 * ASKED + 1):
        process = started(bench, out, service_environment)
        await_answers(out, kept, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert len(answers(out)) < len(STRATEGIES) * ASKED, "it was finished before it was killed"
    code = started(bench, out, service_environment).wait(500)
    assert code == 0, log_of(out).read_text()
    return out


def started(bench: Bench, out: Path, environment: dict[str, str]) -> Forked:
    return Forked(["bench", "--out", str(out), *bench.overrides()], log_of(out), environment)


def log_of(out: Path) -> Path:
    return out.with_name("log")


def lines_of(out: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(out.glob("builtin/*.jsonl")):
        for line in path.read_bytes().split(b"\n")[1:-1]:
            yield path.stem, json.loads(line)["id"]


def answers(out: Path) -> list[tuple[str, str]]:
    """Strategy and question of every answer that is whole."""
    return list(lines_of(out))


def await_answers(out: Path, count: int, process: Forked) -> None:
    deadline = time.monotonic() + 300
    while len(answers(out)) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"{len(answers(out))} of {count} answers: {log_of(out).read_text()}")
        time.sleep(0.02)


def test_killed_twice_no_question_is_lost_and_none_is_asked_twice(finished: Path) -> None:
    found = answers(finished)
    assert len(found) == len(set(found)) == len(STRATEGIES) * ASKED
    assert len({question for _, question in found}) == ASKED
    assert {strategy for strategy, _ in found} == set(STRATEGIES)


def test_it_reports_what_it_did(finished: Path) -> None:
    report = (finished / "report.md").read_text()
    assert "not answered yet" not in report
    for strategy in STRATEGIES:
        assert f"| out | {strategy} |" in report
    conditions, records = read_records(finished / "builtin" / "research.jsonl")
    assert len(conditions["weights"]) == 16
    assert conditions["dtype"] == "float32"
    assert conditions["index"] == "wikipedia-leads"
    assert any(record["searches"] for record in records), "the agent never searched"
    assert (finished / "episodes.html").stat().st_size > 10_000


def test_the_answer_route_answers_as_the_bench_does(bench: Bench, finished: Path) -> None:
    with bench.http() as http:
        for strategy in STRATEGIES:
            for record in read_records(finished / "builtin" / f"{strategy}.jsonl")[1]:
                body = {"question": record["question"], "strategy": strategy, "seed": 1}
                answer = http.post("/answer", json=body).raise_for_status().json()
                assert answer["trace"] == record["trace"], (strategy, record["question"])
                assert (answer["answer"], answer["stop_reason"]) == (record["answer"], record["stop_reason"])
                assert answer["usage"]["sampled_tokens"] == record["sampled_tokens"]
                assert answer["usage"]["searches"] == record["searches"]


def test_any_openai_endpoint_is_asked_the_same(bench: Bench, finished: Path, tmp_path: Path) -> None:
    endpoint = f"bench.endpoint={bench.policy.url}/v1"
    bench.run(tmp_path / "out", endpoint, "bench.model=policy", strategies=("naive-rag", "ircot", "research"))
    for strategy in ("naive-rag", "ircot", "research"):
        former = {record["id"]: record for record in read_records(finished / "builtin" / f"{strategy}.jsonl")[1]}
        for record in read_records(tmp_path / "out" / "builtin" / f"{strategy}.jsonl")[1]:
            assert record["trace"] == former[record["id"]]["trace"], (strategy, record["question"])
            assert record["read_tokens"] == former[record["id"]]["read_tokens"]


def test_answers_are_judged_once(bench: Bench, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    judge = (f"bench.judge_endpoint={bench.policy.url}/v1", "bench.judge_model=policy")
    bench.run(out, *judge)
    kept = (out / VERDICTS).read_text().splitlines()
    verdicts = [line for line in map(json.loads, kept) if "key" in line]
    # The small model is no judge of anything, but it was asked, and a schema made it give a verdict.
    assert len(verdicts) > ASKED
    assert all(isinstance(verdict["correct"], bool) and verdict["judge"] == "policy" for verdict in verdicts)
    assert "judge [95 %]" in (out / "report.md").read_text()
    bench.run(out, *judge)
    again = [json.loads(line) for line in (out / VERDICTS).read_text().splitlines()]
    assert again[: len(kept)] == [json.loads(line) for line in kept]
    keys = [line["key"] for line in again if "key" in line]
    assert len(keys) == len(set(keys)), "an answer was judged twice"


def test_other_conditions_are_refused_and_nothing_is_touched(bench: Bench, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.glob("builtin/*.jsonl")}
    with pytest.raises(ConfigurationError, match="begun under other conditions: limits"):
        bench.run(finished, "episode.top_k=2")
    assert {path: path.read_bytes() for path in finished.glob("builtin/*.jsonl")} == before


def test_another_model_than_the_one_that_is_served_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="serves builtin:smollm2-135m-instruct, and not /some/other"):
        bench.run(tmp_path / "out", "model.name=/some/other")


def test_a_benchmark_of_another_size_is_warned_of(bench: Bench, tmp_path: Path) -> None:
    questions = [{"id": f"2hop__{n}", "question": f"Who wrote {n} books?", "answer": "x"} for n in range(2)]
    source = tmp_path / "musique_dev.jsonl"
    source.write_text("".join(json.dumps(question) + "\n" for question in questions))
    said = bench.run(tmp_path / "out", f'bench.questions=["{source}"]', "bench.per_kind=2", strategies=("naive",))
    assert "MuSiQue has 2 questions here, but the paper asked 2417" in said


def test_a_prompt_that_the_weights_were_not_trained_with_is_refused(
    bench: Bench, tmp_path: Path, service_environment: dict[str, str]
) -> None:
    """Last, for the server has these weights from here on."""
    trained = bench.weights / "version-000001"
    shutil.copytree(bench.data / "models" / "smollm2-135m-instruct", trained)
    (trained / "prompt.txt").write_text("Think of something else.\n")
    with bench.http() as http:
        former = http.get("/info").json()
        http.post(
            "/admin/weights",
            json={"path": str(trained), "version": "1"},
            headers={"Authorization": f"Bearer {ADMIN}"},
        ).raise_for_status()
        now: dict[str, Any] = http.get("/info").json()
    assert former["trained_prompt"] is None
    assert now["trained_prompt"] not in (None, now["prompt"])
    assert now["weights"] == former["weights"], "these are the same weights by another way"
    with pytest.raises(ConfigurationError, match="trained with another prompt"):
        bench.run(tmp_path / "out", strategies=("naive",))
    bench.run(tmp_path / "out", "episode.allow_prompt_mismatch=true", strategies=("naive",))
    served = subprocess.run(
        [sys.executable, "-m", "cli.main", "serve", "policy", f"model.name={trained}"],
        cwd=REPOSITORY,
        env=service_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert served.returncode == 2
    assert "trained with another prompt" in served.stderr
