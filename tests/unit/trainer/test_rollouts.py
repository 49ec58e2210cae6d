"""Groups of episodes: concurrency, outages, and what is never scored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from research.episode.agent import Episode, Sampling, SearchAgent
from research.errors import ServiceError, TrainingError
from research.passages import Passage
from research.prompts import Prompt
from research.questions import Question
from research.settings import EpisodeConfig
from services.trainer.groups import Group
from services.trainer.rollout import gate as module
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.versions import Versions, WrongWeightsError, require_version
from services.trainer.status import RunStatus
from tests.support.characters import CharacterTokenizer, Shelf
from tests.unit.episode.test_episode import ANSWER, SEARCH

QUESTIONS = [Question("1", "same text", ("Paris",)), Question("2", "same text", ("Rome",))]


class EndlessScript:
    """Searches once, then answers, for any number of episodes at a time."""

    async def generate(self, prompt_ids, max_tokens, sampling):  # type: ignore[no-untyped-def]
        from tests.support.characters import Script

        searched = "</result>" in CharacterTokenizer().decode(prompt_ids)
        return await Script([ANSWER if searched else SEARCH]).generate(prompt_ids, max_tokens, sampling)


class Flaky(Shelf):
    """Fails its first searches."""

    def __init__(self, failures: int) -> None:
        super().__init__([Passage("7", "Paris", "The capital.")])
        self.failures = failures

    async def search(self, query: str, top_k: int) -> list[Passage]:
        if self.failures > 0:
            self.failures -= 1
            raise ServiceError("the retriever does not answer")
        return await super().search(query, top_k)


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)


def sample(
    directory: Path,
    retriever: Flaky,
    check_services: Callable[[], Awaitable[str | None]],
    retries: int = 2,
    patience: float = 5,
    version: int = 1,
) -> tuple[list[Group], Rollouts, RunStatus]:
    status = RunStatus("test", 1)
    limits = EpisodeConfig(max_tokens=3000)
    agent = SearchAgent(EndlessScript(), retriever, CharacterTokenizer(), Prompt("none", "rules"), limits, 4000)

    async def run() -> tuple[list[Group], Rollouts]:
        gate, journal = ServiceGate(check_services, patience, status), EpisodeJournal(directory)
        rollouts = Rollouts(agent, Sampling(), gate, retries, Versions(lambda: version), journal, seed=1)
        return await rollouts.groups(1, QUESTIONS, 3, status.advance), rollouts

    groups, rollouts = asyncio.run(run())
    return groups, rollouts, status


async def all_ready() -> str | None:
    return None


def test_groups_are_told_apart_by_draw_and_not_by_text(tmp_path: Path) -> None:
    groups, _, status = sample(tmp_path, Flaky(0), all_ready)
    assert [group.id for group in groups] == ["1.0", "1.1"]
    assert [len(group.members) for group in groups] == [3, 3]
    assert [group.rewards for group in groups] == [[1.0] * 3, [0.1] * 3]
    assert status.done == 6


def test_an_outage_pauses_and_costs_no_episode(tmp_path: Path) -> None:
    answers = iter([None, *["the retriever is down"] * 5])  # all is well when the step begins

    async def down_for_a_while() -> str | None:
        return next(answers, None)

    groups, rollouts, status = sample(tmp_path, Flaky(40), down_for_a_while, retries=40)
    assert [group.rewards for group in groups] == [[1.0] * 3, [0.1] * 3]
    assert rollouts.infra_errors == 40
    assert status.waiting_for is None
    assert any("training pauses" in line for line in status.lines)
    assert any("continues" in line for line in status.lines)


def test_nobody_is_waited_for_once_a_wait_was_in_vain(tmp_path: Path) -> None:
    status = RunStatus("test", 1)

    async def scenario() -> None:
        async def down() -> str | None:
            return "the retriever is down"

        with pytest.raises(TrainingError, match="the retriever is down; waited 0 s"):
            await ServiceGate(down, 0.0, status).wait_until_ready()

    asyncio.run(scenario())
    assert status.waiting_for is None


def test_what_keeps_failing_while_all_is_up_is_left_out_not_scored(tmp_path: Path) -> None:
    groups, rollouts, _ = sample(tmp_path, Flaky(10**6), all_ready, retries=2)
    assert [group.members for group in groups] == [[], []]
    assert rollouts.infra_errors == 6 * 3


def test_patience_ends(tmp_path: Path) -> None:
    answers = iter([None])  # all is well when the step begins

    async def down() -> str | None:
        return next(answers, "the retriever is down")

    with pytest.raises(TrainingError, match="outage_timeout"):
        sample(tmp_path, Flaky(10**6), down, patience=0.01)


def test_episodes_of_other_weights_are_never_scored(tmp_path: Path) -> None:
    # The script writes version 1 throughout; what was published is version 2.
    groups, rollouts, _ = sample(tmp_path, Flaky(0), all_ready, retries=1, version=2)
    assert [group.members for group in groups] == [[], []]
    assert rollouts.infra_errors == 6 * 2


def test_other_weights_are_named() -> None:
    def episode(*versions: str) -> Episode:
        return Episode("Q?", [1], versions=list(versions))

    require_version([episode("3", "", "3"), episode()], "3")
    with pytest.raises(WrongWeightsError, match="version 0 instead of 3"):
        require_version([episode("3", "3"), episode("3", "", "0")], "3")


def test_what_was_sampled_in_another_form_is_sampled_again(tmp_path: Path) -> None:
    sample(tmp_path, Flaky(0), all_ready)
    journal = tmp_path / "step-000001.journal.jsonl"
    journal.write_text(journal.read_text().replace('"form":"tags"', '"form":"tool_calls"', 2))
    groups, _, _ = sample(tmp_path, again := Flaky(0), all_ready)
    assert len(again.queries) == 2
    assert [{member.episode.form for member in group.members} for group in groups] == [{"tags"}, {"tags"}]


def test_what_was_sampled_before_a_kill_is_not_sampled_again(tmp_path: Path) -> None:
    first, _, _ = sample(tmp_path, Flaky(0), all_ready)
    again, rollouts, status = sample(tmp_path, Flaky(10**6), all_ready)
    assert [[member.episode for member in group.members] for group in again] == [
        [member.episode for member in group.members] for group in first
    ]
    assert rollouts.infra_errors == 0
    assert status.done == 6
