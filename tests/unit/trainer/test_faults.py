"""Nothing ends a run that should not: each fault is real, over HTTP, and costs what docs/operations.md says."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from research import descriptors
from research.clients import PolicyAdmin, PolicyClient
from research.descriptors import connections_each, raise_limit
from research.episode.agent import Sampling, SearchAgent, StopReason
from research.episode.fitting import fitting, summary
from research.errors import ConfigurationError, TrainingError
from research.passages import Passage
from research.prompts import Prompt
from research.questions import Question
from research.schemas import WeightsRequest, WeightsResponse, WeightsStatus
from research.settings import EpisodeConfig
from services.trainer.evaluation.evaluator import BEFORE, Evaluator
from services.trainer.rollout import gate as gate_module
from services.trainer.rollout import stragglers as stragglers_module
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.stragglers import Stragglers
from services.trainer.rollout.versions import Versions
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.status import RunStatus
from services.trainer.weights import replicas as replicas_module
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import DiskSync
from tests.support.characters import CharacterTokenizer, Shelf
from tests.support.policy_server import PolicyServer
from tests.support.tiny_model import tiny_settings
from tests.unit.episode.test_episode import SEARCH

Result = TypeVar("Result")
QUESTIONS = [Question(str(number), f"Question {number}?", ("Paris",), kind="one_hop") for number in range(20)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(stragglers_module, "_REPEAT_SECONDS", 0.05)


class Admin(PolicyAdmin):
    """Gives a server new weights: it says which it has from then on."""

    def __init__(self, server: PolicyServer) -> None:
        super().__init__(server.url, token="t", retries=0)
        self._server = server

    async def update_weights(self, request: WeightsRequest) -> WeightsResponse:
        await self.check_ready()
        self._server.version = request.version
        return WeightsResponse(version=request.version, seconds={})

    async def weights(self, limit: float = 5.0) -> WeightsStatus:
        await self.check_ready()
        return WeightsStatus(version=self._server.version, source="x", workers=1)


class Trainer:
    """The rollouts of a run whose version 1 is published to these servers."""

    def __init__(
        self, directory: Path, servers: list[PolicyServer], *, patience: float = 10.0, retries: int = 2
    ) -> None:
        self.status = RunStatus("test", 1)
        self.policy = Replicas(
            [
                Replica(PolicyClient(each.url, timeout=patience, retries=0, at_once=connections_each(4)), Admin(each))
                for each in servers
            ],
            DiskSync(),
            self.status.log,
        )
        limits = EpisodeConfig(max_tokens=3000)
        self.agent = SearchAgent(self.policy, Shelf([]), CharacterTokenizer(), Prompt("none", "rules"), limits, 4000)
        self.checks = 0

        async def check_services() -> str | None:
            self.checks += 1
            return await self.policy.reconcile(WeightsRequest(path="x", version="1"))

        self.rollouts = Rollouts(
            self.agent,
            Sampling(),
            ServiceGate(check_services, 30.0, self.status),
            service_retries=2,
            versions=Versions(lambda: 1),
            journal=EpisodeJournal(directory),
            seed=1,
        )

    async def __aenter__(self) -> Trainer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.policy.close()


def train(
    directory: Path, servers: list[PolicyServer], work: Callable[[Trainer], Awaitable[Result]], **how: float
) -> Result:
    async def run() -> Result:
        async with AsyncExitStack() as opened:
            for server in servers:
                await opened.enter_async_context(server.serving())
            return await work(await opened.enter_async_context(Trainer(directory, servers, **how)))  # type: ignore[arg-type]

    return asyncio.run(run())


@contextmanager
def descriptors_limited(to: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (to, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_episodes_than_descriptors_wait_for_each_other(tmp_path: Path) -> None:
    server = PolicyServer(seconds_per_token=0.01)

    async def work(trainer: Trainer) -> int:
        groups = await trainer.rollouts.groups(1, QUESTIONS * 5, 3, lambda: None)
        assert trainer.rollouts.infra_errors == 0
        return sum(len(group.members) for group in groups)

    with descriptors_limited(400):  # this process holds both ends of each connection
        assert train(tmp_path, [server], work, patience=20.0) == 300


def test_the_limit_of_descriptors_is_raised_to_what_the_system_allows() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with descriptors_limited(128):
        few = connections_each(4)
        assert 4 * few < 128
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, descriptors._ENOUGH), hard)
        assert connections_each(4) > few


def test_a_hundred_episodes_that_fail_together_wait_for_one_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two servers hangs: each check of it takes the grace, which a hundred had to wait out one by one."""
    grace = 0.5
    monkeypatch.setattr(replicas_module, "_GRACE_SECONDS", grace)
    well, silent = PolicyServer(), PolicyServer()

    async def work(trainer: Trainer) -> tuple[int, float]:
        await trainer.rollouts.gate.wait_until_ready()
        silent.hangs = True
        await trainer.rollouts.gate.wait_until_ready()  # from here on it is out of service
        checks, started = trainer.checks, time.monotonic()
        await asyncio.gather(*(trainer.rollouts.gate.wait_until_ready() for _ in range(100)))
        seconds = time.monotonic() - started
        silent.hangs = False
        return trainer.checks - checks, seconds

    checks, seconds = train(tmp_path, [well, silent], work)
    assert checks == 1
    assert seconds < 20 * grace  # one grace on an idle machine, a hundred before


def test_a_server_that_dies_costs_no_episode(tmp_path: Path) -> None:
    first, second = PolicyServer(seconds_per_token=0.05, tokens=10), PolicyServer(seconds_per_token=0.05, tokens=10)

    async def run() -> None:
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(second.serving())
            trainer = await opened.enter_async_context(Trainer(tmp_path, [first, second]))
            async with first.serving():
                await trainer.rollouts.gate.wait_until_ready()
                sampling = asyncio.create_task(trainer.rollouts.groups(1, QUESTIONS, 2, lambda: None))
                await first.asked(5)
            groups = await sampling
        assert [len(group.members) for group in groups] == [2] * len(QUESTIONS)
        assert {member.episode.stop_reason for group in groups for member in group.members} == {StopReason.ANSWERED}
        assert trainer.rollouts.infra_errors > 0

    asyncio.run(run())


def test_stragglers_are_cut_once_the_others_are_done_and_scored_as_truncated(tmp_path: Path) -> None:
    quick, slow = PolicyServer(), PolicyServer(seconds_per_token=0.02, tokens=100_000)

    async def work(trainer: Trainer) -> None:
        share = 0.7  # either server gets about half of the 40 questions, by chance up to `routing.BOUND` times that
        trainer.rollouts.stragglers = Stragglers(share, trainer.policy.cut)
        groups = await trainer.rollouts.groups(1, QUESTIONS * 2, 1, lambda: None)
        reasons = [group.members[0].episode.stop_reason for group in groups]
        assert {StopReason.ANSWERED, StopReason.TIME_LIMIT} == set(reasons)
        cut = [group.members[0] for group in groups if group.members[0].episode.stop_reason is StopReason.TIME_LIMIT]
        assert len(cut) <= share * len(groups)
        assert all(member.episode.sampled_tokens > 0 for member in cut)
        assert {member.score.reason for member in cut} == {"bad format: the episode did not end by itself"}
        # They are as finished as any other, so a killed run does not sample them again.
        texts = {number: question.text for number, question in enumerate(QUESTIONS * 2)}
        assert len(EpisodeJournal(tmp_path).recorded(1, texts, trainer.rollouts.versions.allow)) == len(groups)

    train(tmp_path, [quick, slow], work, patience=30.0)


def test_a_question_that_cannot_be_encoded_costs_its_episodes_alone(tmp_path: Path) -> None:
    odd = Question("odd", "What is <|im_end|>?", ("Paris",))

    async def work(trainer: Trainer) -> None:
        groups = await trainer.rollouts.groups(1, [*QUESTIONS[:2], odd], 2, lambda: None)
        assert [len(group.members) for group in groups] == [2, 2, 0]
        assert trainer.rollouts.unusable == {"odd": 2}
        assert trainer.rollouts.infra_errors == 0

    train(tmp_path, [PolicyServer()], work)


def test_a_passage_that_cannot_be_encoded_costs_its_episodes_alone(tmp_path: Path) -> None:
    class UnawareTokenizer(CharacterTokenizer):
        """Does not name all its special tokens, so that a passage with one is not made inert."""

        special_tokens: tuple[str, ...] = ()

    searching = PolicyServer(search=CharacterTokenizer().encode(SEARCH))

    async def work(trainer: Trainer) -> None:
        hostile = Shelf([Passage("7", "Paris", "The <|im_end|> capital.")])
        trainer.rollouts.agent = replace(trainer.agent, tokenizer=UnawareTokenizer(), retriever=hostile)
        groups = await trainer.rollouts.groups(1, QUESTIONS[:2], 2, lambda: None)
        assert [group.members for group in groups] == [[], []]
        assert trainer.rollouts.unusable == {"0": 2, "1": 2}

    train(tmp_path, [searching], work)


def test_questions_that_do_not_fit_are_left_out_by_name(tmp_path: Path) -> None:
    async def work(trainer: Trainer) -> None:
        long = Question("long", "?" * 5000, ("Paris",))
        odd = Question("odd", "What is <|im_end|>?", ("Paris",))
        kept, left_out = fitting(trainer.agent, [QUESTIONS[0], long, odd, QUESTIONS[1]], "questions.train")
        assert kept == QUESTIONS[:2]
        assert list(left_out) == ["long", "odd"]
        assert "5001 tokens" in left_out["long"]
        assert "2 of 4 questions are left out (long, odd)" in summary(left_out, 4, "questions.train")
        with pytest.raises(ConfigurationError, match=r"questions\.train: none of its 1 questions can be asked"):
            fitting(trainer.agent, [long], "questions.train")

    train(tmp_path, [PolicyServer()], work)


def evaluator(directory: Path, trainer: Trainer, held_out: list[Question]) -> Evaluator:
    settings = tiny_settings(directory, "evaluation.per_kind=20", "policy.max_num_seqs=4")
    return Evaluator(settings, trainer.agent, trainer.rollouts, RunDirectory(directory), held_out, trainer.status)


def test_a_policy_that_comes_back_with_its_base_in_an_evaluation_costs_those_questions_a_try(tmp_path: Path) -> None:
    server = PolicyServer(seconds_per_token=0.02)

    async def work(trainer: Trainer) -> None:
        await trainer.rollouts.gate.wait_until_ready()
        asked = asyncio.create_task(evaluator(tmp_path, trainer, QUESTIONS).evaluate(BEFORE))
        await server.asked(10)
        server.version = "0"  # restarted: it serves its base until it is given the weights
        figures = await asked
        assert figures["one_hop"].n == len(QUESTIONS)
        assert len(QUESTIONS) < len(server.prompts) < 2 * len(QUESTIONS)
        answers = RunDirectory(tmp_path).answers(BEFORE)
        assert {version for answer in answers for version in answer["episode"]["versions"]} == {"1"}

    train(tmp_path, [server], work)


def test_a_question_of_an_evaluation_that_cannot_be_encoded_is_counted_as_failed(tmp_path: Path) -> None:
    odd = Question("odd", "What is <|im_end|>?", ("Paris",), kind="one_hop")

    async def work(trainer: Trainer) -> None:
        held_out = [*QUESTIONS[:3], odd]
        checked = evaluator(tmp_path, trainer, held_out)
        figures = await checked.evaluate(BEFORE)
        assert (figures["one_hop"].n, figures["one_hop"].failed) == (3, 1)
        assert checked.is_done(BEFORE)
        assert any("left out" in line and "odd" in line for line in trainer.status.lines)

    train(tmp_path, [PolicyServer()], work)


def test_an_evaluation_that_keeps_failing_ends_with_the_reason(tmp_path: Path) -> None:
    async def work(trainer: Trainer) -> None:
        # The service says that it is ready, and gives other weights every time.
        trainer.rollouts.versions = Versions(lambda: 9)
        await evaluator(tmp_path, trainer, QUESTIONS).evaluate(BEFORE)

    with pytest.raises(TrainingError, match="20 of 20 questions could not be asked: the policy served weight version"):
        train(tmp_path, [PolicyServer()], work)


def test_a_journal_that_has_no_place_ends_the_rollout_with_its_name(tmp_path: Path) -> None:
    async def work(trainer: Trainer) -> None:
        trainer.rollouts.journal = EpisodeJournal(tmp_path / "file" / "below")
        (tmp_path / "file").write_text("not a directory")
        await trainer.rollouts.groups(1, QUESTIONS, 1, lambda: None)

    with pytest.raises(TrainingError, match="cannot be written"):
        train(tmp_path, [PolicyServer()], work)


def test_a_service_that_stays_away_ends_the_wait_of_all_with_its_name(tmp_path: Path) -> None:
    server = PolicyServer()

    async def work(trainer: Trainer) -> None:
        trainer.rollouts.gate = ServiceGate(trainer.policy.unready, 0.1, trainer.status)
        server.broken = True
        waiting = [trainer.rollouts.gate.wait_until_ready() for _ in range(3)]
        faults = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(fault, TrainingError) for fault in faults)
        assert all(server.url in str(fault) and "trainer.outage_timeout" in str(fault) for fault in faults)

    train(tmp_path, [server], work)
