"""Groups in which members go on from others: who from whom, what a kill leaves, and what is counted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from research.episode.agent import Generation, Sampling, SearchAgent
from research.passages import Passage
from research.prompts import Prompt
from research.questions import Question
from research.settings import EpisodeConfig
from research.settings.training import GrpoConfig
from services.trainer.groups import Group
from services.trainer.rollout.branches import root_of
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.refill import Sampled
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.stream import GroupStream
from services.trainer.rollout.versions import Versions
from services.trainer.status import RunStatus
from services.trainer.telemetry.metrics import rollout_entry, step_metrics
from tests.support.characters import CharacterTokenizer, Script, Shelf
from tests.support.scored import ROLLOUT
from tests.unit.episode.test_episode import ANSWER, SEARCH

QUESTION = Question("1", "same text", ("Paris",))
SIZE, BRANCHES = 5, 3
VERSIONS = Versions(lambda: 1)


class TwoSearches:
    """Searches twice, then answers; or answers at once."""

    def __init__(self, *, searches: bool = True) -> None:
        self.searches, self.asked = searches, 0

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        self.asked += 1
        searched = CharacterTokenizer().decode(prompt_ids).count("</result>")
        turn = SEARCH if self.searches and searched < 2 else ANSWER
        return await Script([turn]).generate(prompt_ids, max_tokens, sampling)


def rollouts_in(directory: Path, policy: TwoSearches) -> Rollouts:
    async def all_ready() -> None:
        return None

    shelf, limits = Shelf([Passage("7", "Paris", "The capital.")]), EpisodeConfig(max_tokens=3000)
    agent = SearchAgent(policy, shelf, CharacterTokenizer(), Prompt("none", "rules"), limits, 4000)
    gate = ServiceGate(all_ready, 5, RunStatus("test", 1))
    return Rollouts(agent, Sampling(), gate, 0, VERSIONS, EpisodeJournal(directory), seed=1, branches=BRANCHES)


def sample(directory: Path, policy: TwoSearches) -> Group:
    [group] = asyncio.run(rollouts_in(directory, policy).groups(1, [QUESTION], SIZE, lambda: None))
    return group


@given(st.integers(2, 12), st.integers(0, 11))
def test_each_root_gets_as_many_branches_give_or_take_one(size: int, branches: int) -> None:
    roots = size - branches
    if roots < 1:
        return
    grown = [root_of(place, size, branches) for place in range(size)]
    assert grown[:roots] == [None] * roots
    counts = Counter(grown[roots:])
    assert sum(counts.values()) == branches
    assert max((counts[root] for root in range(roots)), default=0) - min(counts[root] for root in range(roots)) <= 1


def test_the_last_members_grow_from_the_first(tmp_path: Path) -> None:
    policy = TwoSearches()
    members = sample(tmp_path, policy).members
    assert [member.root for member in members] == [0, 1, 0, 1, 0]
    points = [member.episode.branched_from for member in members[2:]]
    for member, point in zip(members[2:], points, strict=True):
        assert point is not None
        root = members[point.member].episode
        assert member.episode.token_ids[: point.tokens] == root.token_ids[: point.tokens]
        assert member.score.em == 1.0
    assert policy.asked == 3 * SIZE - sum(point.turn + 1 for point in points if point is not None)


def test_who_has_no_search_to_branch_from_begins_with_the_prompt(tmp_path: Path) -> None:
    policy = TwoSearches(searches=False)
    members = sample(tmp_path, policy).members
    assert [member.root for member in members] == list(range(SIZE))
    assert policy.asked == SIZE


@pytest.mark.parametrize("lines", range(SIZE + 1))
def test_a_resumed_run_chooses_the_same_and_samples_only_what_is_missing(tmp_path: Path, lines: int) -> None:
    whole = sample(tmp_path / "whole", TwoSearches())
    journal = tmp_path / "whole" / "step-000001.journal.jsonl"
    (tmp_path / "killed").mkdir()
    kept = journal.read_bytes().splitlines(keepends=True)[:lines]
    (tmp_path / "killed" / journal.name).write_bytes(b"".join(kept))
    policy = TwoSearches()
    again = sample(tmp_path / "killed", policy)
    assert [m.episode.branched_from for m in again.members] == [m.episode.branched_from for m in whole.members]
    assert [m.episode.token_ids for m in again.members] == [m.episode.token_ids for m in whole.members]
    assert (policy.asked == 0) == (lines == SIZE)


def test_a_branch_of_another_root_is_sampled_again(tmp_path: Path) -> None:
    sample(tmp_path, TwoSearches())
    journal = tmp_path / "step-000001.journal.jsonl"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for entry in entries:
        if entry["member"] == 0:
            entry["episode"]["token_ids"][0] += 1
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    policy = TwoSearches()
    members = sample(tmp_path, policy).members
    assert 0 < policy.asked <= 4  # those of member 0, 2 and 4, from after their first search or the second
    for member in (members[2], members[4]):
        assert member.episode.token_ids[0] == members[0].episode.token_ids[0]


def test_groups_under_way_branch_too(tmp_path: Path) -> None:
    async def run() -> Group:
        stream = GroupStream(rollouts_in(tmp_path, TwoSearches()), SIZE, lambda: None)
        await stream.begin({"1.0": QUESTION})
        return await stream.next(lambda group: True)

    assert [member.root for member in asyncio.run(run()).members] == [0, 1, 0, 1, 0]


def test_what_is_copied_is_not_counted_as_sampled(tmp_path: Path) -> None:
    group = sample(tmp_path, TwoSearches())
    rollout = rollout_entry(Sampled([group], 0, 1, 1), 1, VERSIONS, Counter())
    entry = step_metrics(1, 1, [group], silent=0, infra_errors=0, rollout=ROLLOUT, update=None)
    written = [member.episode.sampled_tokens for member in group.members]
    assert rollout["branches"] == BRANCHES
    assert entry["sampled_tokens"] + rollout["copied_tokens"] == pytest.approx(sum(written) / SIZE)
    assert entry["sampled_tokens"] < min(written)
    assert entry["by_kind"][QUESTION.kind]["sampled_tokens"] == entry["sampled_tokens"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"branches": 5}, "leave none to grow from"),
        ({"branches": 2, "objective": "reinforce++"}, "compared within their tree"),
        ({"branches": 2, "straggler_share": 0.1}, "straggler_share"),
    ],
)
def test_what_does_not_go_together_is_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        GrpoConfig(group_size=5, **wrong)
    assert GrpoConfig(group_size=5, branches=4, objective="rloo").branches == 4
