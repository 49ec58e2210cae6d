"""A retriever that gives no more answers ends a run in order: with its words, and with all that was sampled kept.

Episodes without an answer would otherwise be left out one by one, and the run would train on those that never search.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from research.clients import RetrieverClient
from research.episode.agent import Finish, Generation, Sampling, SearchAgent
from research.errors import ServiceRefusalError
from research.prompts import Prompt
from research.retrievers import Retrievers, retriever_of
from research.scoring.ask import ask_each
from research.settings import EpisodeConfig
from services.trainer.evaluation.evaluator import BEFORE, Evaluator
from services.trainer.groups import Group
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.versions import Versions
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.status import RunStatus
from tests.support.characters import EOS, CharacterTokenizer
from tests.support.raw_server import RawServer, answer
from tests.support.search_engines import KEYS, SearchEngine
from tests.support.tiny_model import tiny_settings
from tests.support.web_search import searching
from tests.unit.trainer.test_faults import QUESTIONS

SIX = QUESTIONS[:6]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAVE_API_KEY", KEYS["brave"])


@dataclass
class Asking:
    """A policy that searches for the question's own words, and answers once it has read a result."""

    begun: list[str] = field(default_factory=list)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        text = CharacterTokenizer().decode(prompt_ids[1:])
        question = text.partition("?")[0]
        if "<result>" in text:
            ids = [*CharacterTokenizer().encode("<think>b</think><answer>\\boxed{Paris}</answer>"), EOS]
            return Generation(ids, [-0.5] * len(ids), ["1"] * len(ids), Finish.EOS)
        self.begun.append(question)
        ids = CharacterTokenizer().encode(f"<think>a</think><search>{question}</search>")
        return Generation(ids, [-0.5] * len(ids), ["1"] * len(ids), Finish.SEARCH)


def rollouts(directory: Path, policy: Asking, client: RetrieverClient | Retrievers) -> Rollouts:
    async def check() -> None:
        return None

    agent = SearchAgent(policy, client, CharacterTokenizer(), Prompt("none", ""), EpisodeConfig(max_tokens=3000), 4000)
    gate, versions = ServiceGate(check, 5.0, RunStatus("test", 1)), Versions(lambda: 1)
    return Rollouts(agent, Sampling(), gate, 2, versions, EpisodeJournal(directory), seed=1)


def sample(directory: Path, urls: list[str], questions: int, policy: Asking) -> list[Group]:
    async def run() -> list[Group]:
        async with retriever_of(urls) as client:
            return await rollouts(directory, policy, client).groups(1, SIX[:questions], 2, lambda: None)

    return asyncio.run(run())


def test_a_spent_budget_ends_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    engine, policy = SearchEngine("brave"), Asking()
    record, journal = tmp_path / "data", tmp_path / "episodes"
    with searching(record, engine, "web.max_requests=3") as client:
        url = str(client.base_url)
        # Three questions fit the cap; a group of them is finished before the others are asked.
        assert [len(group.members) for group in sample(journal, [url], 3, policy)] == [2, 2, 2]
        with pytest.raises(ServiceRefusalError, match=r"web\.max_requests = 3; raise it"):
            sample(journal, [url], 6, policy)
    asked = len(engine.asked)
    assert asked == 3
    finished = policy.begun.copy()
    with searching(record, engine, "web.max_requests=100") as client:
        groups = sample(journal, [str(client.base_url)], 6, policy)
    assert [len(group.members) for group in groups] == [2] * 6
    # Nothing that was finished is sampled again, and nothing that was paid for is asked again.
    assert all(f"Question {number}" not in policy.begun[len(finished) :] for number in (0, 1, 2))
    assert len(engine.asked) == 6


@pytest.mark.parametrize("servers", [1, 2])
def test_a_query_that_is_not_recorded_ends_the_run_at_once(tmp_path: Path, servers: int) -> None:
    engine, policy = SearchEngine("brave"), Asking()
    with engine.serving() as address:
        with searching(tmp_path, address, "retriever.backend=brave") as client:
            first = sample(tmp_path / "a", [str(client.base_url)], 2, policy)
        with searching(tmp_path, address, "retriever.backend=brave", "web.replay=true") as client:
            urls = [str(client.base_url)] * servers
            again = sample(tmp_path / "b", urls, 2, policy)
            with pytest.raises(ServiceRefusalError, match=r"'Question 2' is not in the record"):
                sample(tmp_path / "c", urls, 3, policy)
    assert len(engine.asked) == 2
    assert _texts(first) == _texts(again)


def test_an_evaluation_ends_with_the_same_words(tmp_path: Path) -> None:
    engine = SearchEngine("brave")

    async def evaluate(url: str) -> None:
        async with RetrieverClient(url) as client:
            own = rollouts(tmp_path / "episodes", Asking(), client)
            settings = tiny_settings(tmp_path, "evaluation.per_kind=6", "policy.max_num_seqs=2")
            status, run_dir = RunStatus("test", 1), RunDirectory(tmp_path / "run")
            await Evaluator(settings, own.agent, own, run_dir, SIX, status).evaluate(BEFORE)

    with engine.serving() as address:
        with searching(tmp_path, address, "retriever.backend=brave", "web.max_requests=2") as client:
            url = str(client.base_url)
            with pytest.raises(ServiceRefusalError, match=r"web\.max_requests = 2; raise it"):
                asyncio.run(evaluate(url))
        with searching(tmp_path, address, "retriever.backend=brave") as client:
            asyncio.run(evaluate(str(client.base_url)))
    assert len(engine.asked) == 6


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("status", [402, 409, 507])
def test_a_final_refusal_is_neither_waited_for_nor_asked_again(status: int, servers: int) -> None:
    server = RawServer(lambda _: answer({"error": "x", "message": "raise web.max_spend"}, status, Retry_After="1"))

    async def run() -> None:
        async with server.serving() as url, retriever_of([url] * servers) as client:
            with pytest.raises(ServiceRefusalError, match=r"raise web\.max_spend"):
                await client.search("q", 3)
            with pytest.raises(ServiceRefusalError):
                await ask_each([1, 2, 3], lambda *_: client.search("q", 3), concurrency=1)

    asyncio.run(run())
    assert len(server.asked) == 2


def _texts(groups: list[Group]) -> list[list[list[int]]]:
    return [[member.episode.token_ids for member in group.members] for group in groups]
