"""Rewards by name, and functions of the user's own with everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.config import load_settings
from research.episode.agent import Episode, StopReason
from research.errors import ConfigurationError, TrainingError
from research.questions import Question
from research.scoring.rewards import reward_functions
from research.settings.reward import RewardConfig
from tests.support.scored import answered

QUESTION = Question("q", "Where?", ("Paris", "City of Light"))
RIGHT, PART = answered("Paris", searches=1), answered("in Paris", searches=1)
GUESSED, WRONG = answered("Paris"), answered("Rome", searches=1)
CUT = answered("Paris", searches=1, stop_reason=StopReason.TOKEN_LIMIT)
SILENT = answered("", searches=1)
EPISODES = (RIGHT, PART, GUESSED, WRONG, CUT, SILENT)


def earned(name: str, episodes: tuple[Episode, ...] = EPISODES) -> list[float]:
    function = reward_functions(RewardConfig(terms=name))[name]
    return [function(QUESTION, episode) for episode in episodes]


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("f1", [1, 2 / 3, 1, 0.1, 0, 0]),
        ("em", [1, 0, 1, 0, 0, 0]),
        ("cover_em", [1, 1, 1, 0, 0, 0]),
        ("format", [1, 1, 1, 1, 0, 0]),
        ("f1_penalized", [1, 2 / 3, 0.9, 0, -0.1, -0.2]),
    ],
)
def test_rewards_by_name(name: str, rewards: list[float]) -> None:
    assert earned(name) == pytest.approx(rewards)


def test_penalties_are_settings() -> None:
    reward = RewardConfig(terms="f1_penalized", no_answer_penalty=1, no_search_penalty=2, malformed_penalty=4)
    function = reward_functions(reward)["f1_penalized"]
    assert [function(QUESTION, episode) for episode in (GUESSED, CUT, SILENT)] == [-1, -4, -5]


def test_a_name_is_a_sum_of_one_and_weights_come_from_the_command_line() -> None:
    assert load_settings().reward.terms == {"f1": 1.0}
    assert load_settings(overrides=["reward.terms=em"]).reward.terms == {"em": 1.0}
    given = load_settings(overrides=['reward.terms={em = 0.8, "mine.own:score" = 0.2}'])
    assert given.reward.terms == {"em": 0.8, "mine.own:score": 0.2}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward.terms=bleu"], "no reward 'bleu'; there are f1, em"),
        (["reward.terms={em = 0.0}"], "weight of em is 0.0"),
        (["reward.terms=judge"], "judge_endpoint"),
        (["reward.judge_model=gpt", "reward.judge_endpoint=http://a/v1"], "judge is not among the terms"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load_settings(overrides=overrides)


OWN = """
import math

def searches(question, episode):
    return episode.searches / len(question.answers)

def broken(question, episode):
    return 1 / 0

def endless(question, episode):
    return math.inf

def nothing(question, episode):
    pass

constant = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(OWN)
    (tmp_path / "unfinished_rewards.py").write_text("def score(:")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("own_module")
def test_a_function_of_the_users_own_is_given_question_and_episode() -> None:
    assert earned("own_rewards:searches", (RIGHT, GUESSED)) == [0.5, 0.0]


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:score", "No module named 'no_such_module'.*PYTHONPATH"),
        ("own_rewards:absent", "own_rewards.*no attribute 'absent'"),
        ("own_rewards:constant", "own_rewards:constant is 3, not a function"),
        ("unfinished_rewards:score", "unfinished_rewards cannot be imported: SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused_before_the_run(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        reward_functions(RewardConfig(terms=name))


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("function", "said"),
    [("broken", "ZeroDivisionError.*question q"), ("endless", "returned inf"), ("nothing", "returned None")],
)
def test_a_function_that_fails_ends_the_run_and_is_named(function: str, said: str) -> None:
    with pytest.raises(TrainingError, match=f"own_rewards:{function}.*{said}|{said}"):
        earned(f"own_rewards:{function}")
