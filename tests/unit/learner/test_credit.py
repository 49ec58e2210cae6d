"""Credits of turns as advantages of tokens, and what they change of what is trained on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.config import load_settings
from research.episode.agent import Episode, StopReason, Turn
from research.errors import ConfigurationError
from research.passages import Passage
from research.questions import Question
from research.settings.credit import TurnsConfig
from research.settings.training import GrpoConfig
from services.trainer.groups import Group
from services.trainer.learner.advantages import TrainingBatch, compute_advantages
from services.trainer.learner.credit import token_advantages, turn_advantages, turn_of_tokens
from services.trainer.learner.team import _as_json, _from_json
from tests.support.scored import answered, member

QUESTION = Question("q", "Q?", ("Paris",), supporting=("France",))
FRANCE, LAMP = Passage("1", "France", "Its capital is Paris."), Passage("2", "Lamp", "Light.")
GAIN = TurnsConfig(search_gain=0.5)
CREDITS = st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=5), min_size=1, max_size=6)


def episode(answer: str, *found: list[Passage]) -> Episode:
    """Each search takes two sampled tokens and is followed by a result of one; the answer takes two."""
    made = answered(answer)
    made.token_ids, made.sampled, made.logprobs, made.versions, made.turns = [], [], [], [], [made.turns[-1]]
    for number, passages in enumerate(found):
        made.turns.insert(-1, Turn(f"<search>{number}</search>", str(number), passages, "r"))
        append(made, [True, True, False])
    append(made, [True, True])
    return made


def append(to: Episode, sampled: list[bool]) -> None:
    to.token_ids += [5] * len(sampled)
    to.sampled += sampled
    to.logprobs += [-0.5 if own else 0.0 for own in sampled]
    to.versions += ["1" if own else "" for own in sampled]


def trained(episodes: list[Episode], turns: TurnsConfig, **grpo: object) -> TrainingBatch:
    group = Group("1.0", QUESTION, [member(each, place) for place, each in enumerate(episodes)])
    return compute_advantages([group], [group.rewards], GrpoConfig(scale_advantages=False, **grpo), turns)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 3))
def test_every_sampled_token_knows_its_turn(turns: list[int], result: int) -> None:
    sampled = [own for length in turns for own in [True] * length + [False] * result]
    expected = [number for number, length in enumerate(turns) for _ in range(length)]
    assert turn_of_tokens(sampled) == expected
    assert turn_of_tokens(sampled[:-result]) == expected


@given(CREDITS)
def test_the_credits_of_a_turn_sum_to_zero_over_those_that_came_to_it(credits: list[list[float]]) -> None:
    found = turn_advantages(credits)
    assert [len(own) for own in found] == [len(own) for own in credits]
    for number in range(max(map(len, credits))):
        reached = [own[number] for own in found if len(own) > number]
        if len(reached) > 1:
            assert math.fsum(reached) == pytest.approx(0, abs=1e-9)


def test_who_came_further_than_all_others_is_compared_with_having_ended() -> None:
    assert turn_advantages([[0.5, -0.5, -0.25], [0.5, 0.5]]) == [[0.0, -0.5, -0.25], [0.0, 0.5]]
    assert turn_advantages([[0.5, 0.5]]) == [[0.0, 0.0]]


def test_tokens_get_the_advantage_of_their_episode_and_that_of_their_turn() -> None:
    sampled = [True, True, False, True, False, True]
    assert token_advantages(sampled, 0.25, [0.5, None, -0.5]) == [0.75, 0.75, 0.0, -0.25]


def test_the_search_that_found_something_is_credited_and_not_the_answer_after_it() -> None:
    found, missed = episode("Paris", [FRANCE]), episode("Rome", [LAMP])
    batch = trained([found, missed], GAIN)
    (good, bad), (right, wrong) = (s.advantages for s in batch.sequences), (0.45, -0.45)
    assert good == pytest.approx([right + 0.25] * 2 + [right] * 2)
    assert bad == pytest.approx([wrong - 0.25] * 2 + [wrong] * 2)
    use = batch.group_uses[0][0]
    assert use.advantage == pytest.approx(right)
    assert use.turn_advantages == pytest.approx([0.25, 0.0])


def test_a_group_that_failed_together_is_trained_on_for_what_its_searches_brought() -> None:
    episodes = [episode("Rome", [FRANCE]), episode("Rome", [LAMP])]
    assert not trained(episodes, TurnsConfig()).sequences
    batch = trained(episodes, GAIN)
    assert [s.advantages for s in batch.sequences] == [[0.25, 0.25, 0.0, 0.0], [-0.25, -0.25, 0.0, 0.0]]
    assert batch.zero_signal_groups == 1  # by its answers
    same = [episode("Rome", [LAMP]), episode("Rome", [LAMP])]
    assert not trained(same, GAIN).sequences


def test_search_cost_makes_the_answer_without_a_search_the_better_turn() -> None:
    batch = trained([episode("Rome", [LAMP]), episode("Rome")], TurnsConfig(search_cost=0.2))
    searched, answered_at_once = (s.advantages for s in batch.sequences)
    assert searched == pytest.approx([-0.1, -0.1, 0.0, 0.0])
    assert answered_at_once == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize(("void", "lengths"), [("train", [4, 4]), ("mask_turn", [4, 4]), ("mask_episode", [])])
def test_a_void_turn_can_be_masked_by_itself_or_with_its_episode(void: str, lengths: list[int]) -> None:
    right, rambling = episode("Paris", [FRANCE]), episode("", [LAMP])
    rambling.turns[-1] = Turn("<think>and so on")
    rambling.stop_reason = StopReason.TOKEN_LIMIT
    batch = trained([right, rambling], TurnsConfig(void=void))
    assert [len(s.advantages) for s in batch.sequences] == lengths
    if void == "mask_episode":
        assert "void turn" in (batch.group_uses[0][1].skip_reason or "")
        return
    rest = [-0.5, -0.5] if void == "train" else [0.0, 0.0]
    assert batch.sequences[1].advantages == pytest.approx([-0.5, -0.5, *rest])
    assert batch.group_uses[0][1].turn_advantages == (None if void == "train" else [0.0, None])


def test_an_order_to_the_other_ranks_keeps_each_token_its_advantage() -> None:
    sequences = trained([episode("Paris", [FRANCE]), episode("Rome", [LAMP])], GAIN).sequences
    assert _from_json("grpo_update", [_as_json(sequences), 3]) == [sequences, 3]


def test_a_control_that_must_not_learn_gets_no_credit_for_its_searches() -> None:
    with pytest.raises(ConfigurationError, match=r"shuffled_rewards.*turns\.search_gain"):
        load_settings(overrides=["ablation.kind=shuffled_rewards", "turns.search_gain=0.1"])
