"""Episodes that go on from a result of another: what is copied, what is new, and which limits hold."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from research.episode.agent import BranchPoint, Episode, Sampling, SearchAgent, StopReason
from research.episode.branching import branch, branch_points, is_branch_of
from research.passages import Passage
from research.prompts import Prompt
from research.settings import EpisodeConfig
from tests.support.characters import CharacterTokenizer, Script, Shelf

FIRST, SECOND = "<think>a</think><search>one</search>", "<think>b</think><search>two</search>"
END, OTHER_END = "<think>c</think><answer>\\boxed{Paris}</answer>$", "<think>d</think><answer>\\boxed{Rome}</answer>$"
PASSAGE = Passage("7", "Paris", "The capital.")


def agent_of(script: Script, max_tokens: int = 3000, **limits: int) -> SearchAgent:
    config = EpisodeConfig(max_tokens=max_tokens, **limits)
    return SearchAgent(script, Shelf([PASSAGE]), CharacterTokenizer(), Prompt("none", "rules"), config, 4000)


def play(script: Script, begun: Episode | None = None, max_tokens: int = 3000, **limits: int) -> Episode:
    return asyncio.run(agent_of(script, max_tokens, **limits).run("Q?", Sampling(seed=5), begun))


def streams(episode: Episode, end: int | None = None) -> list[Sequence[object]]:
    each: tuple[Sequence[object], ...] = (episode.token_ids, episode.sampled, episode.logprobs, episode.versions)
    return [stream[:end] for stream in each]


@pytest.fixture
def root() -> Episode:
    return play(Script([FIRST, SECOND, END]))


def test_a_branch_copies_up_to_a_result_and_writes_the_rest_itself(root: Episode) -> None:
    before = streams(root)
    point = branch_points(root, 3)[1]
    script = Script([OTHER_END])
    grown = play(script, branch(root, point))
    assert script.prompts == [root.prompt_ids + root.token_ids[: point.tokens]]
    assert streams(grown, point.tokens) == streams(root, point.tokens)
    assert grown.turns[:2] == root.turns[:2]
    assert (root.answer, grown.answer) == ("Paris", "Rome")
    assert grown.branched_from == point == BranchPoint(3, 1, point.tokens)
    assert grown.copied_tokens == len(FIRST) + len(SECOND)
    assert grown.sampled_tokens - grown.copied_tokens == len(OTHER_END)  # with EOS in the place of $
    assert streams(root) == before
    assert root.copied_tokens == 0


def test_a_point_is_the_end_of_a_result_that_the_model_went_on_from(root: Episode) -> None:
    decode = CharacterTokenizer().decode
    points = branch_points(root, 0)
    assert [point.turn for point in points] == [0, 1]
    for point in points:
        copied = decode(root.token_ids[: point.tokens])
        assert copied == "".join(turn.text + turn.result for turn in root.turns[: point.turn + 1])
    assert branch_points(play(Script([END])), 0) == []
    # The second result did not fit, so the model never saw it.
    room = len(root.token_ids) - len(END) - 10
    unseen = play(Script([FIRST, SECOND]), max_tokens=room)
    assert unseen.stop_reason is StopReason.TOKEN_LIMIT
    assert len(branch_points(unseen, 0)) == 1


def test_limits_hold_over_what_is_copied(root: Episode) -> None:
    [first, second] = branch_points(root, 0)
    too_many = play(Script([FIRST]), branch(root, second), max_searches=2)
    assert too_many.stop_reason is StopReason.SEARCH_LIMIT
    script = Script([END])
    play(script, branch(root, first), max_tokens=1000)
    assert script.budgets == [1000 - first.tokens]


def test_only_the_root_itself_is_taken_for_it(root: Episode) -> None:
    grown = play(Script([END]), branch(root, branch_points(root, 2)[0]))
    assert is_branch_of(grown, root, 2)
    assert not is_branch_of(grown, root, 1)
    assert not is_branch_of(grown, replace(root, versions=["9", *root.versions[1:]]), 2)
    assert not is_branch_of(grown, play(Script([SECOND, END])), 2)
    assert not is_branch_of(root, root, 2)
