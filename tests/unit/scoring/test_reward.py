"""The reward against the rules of the released code; EM and F1 are reviewed in `test_metric_peers`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.scoring.reward import best, exact_match, score, token_f1

WORDS = st.lists(
    st.sampled_from(["the", "a", "an", "Paris", "paris,", "(city)", "U.S.", "1853", "of", "Île-de-France", "dog's"]),
    max_size=6,
)
TEXTS = st.one_of(WORDS.map(" ".join), st.text(max_size=30))


@given(TEXTS, TEXTS)
def test_exact_match_means_full_f1(prediction: str, gold: str) -> None:
    if exact_match(prediction, gold):
        assert token_f1(prediction, gold) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prediction", "gold", "f1"),
    [("yes", "no", 0.0), ("yes", "yes indeed", 0.0), ("yes", "Yes.", 1.0), ("no answer", "noanswer", 0.0)],
)
def test_closed_answers(prediction: str, gold: str, f1: float) -> None:
    assert token_f1(prediction, gold) == f1


def test_a_gold_answer_of_nothing_matches_nothing() -> None:
    assert exact_match("", "the") == 0.0
    assert exact_match("a", "The!") == 0.0
    assert token_f1("", "the") == 0.0


def test_aliases_take_the_best() -> None:
    assert best(exact_match, "United States", ["US", "the United States"]) == 1.0
    assert best(token_f1, "x", []) == 0.0


@pytest.mark.parametrize(
    ("answer", "fault", "reward", "em"),
    [
        ("1853", None, 1.0, 1.0),
        ("in 1853", None, 2 / 3, 0.0),
        ("1999", None, 0.1, 0.0),
        ("1853", "no thoughts", 0.0, 1.0),
        (None, "no answer", 0.0, 0.0),
    ],
)
def test_reward_gates_on_format_first(answer: str | None, fault: str | None, reward: float, em: float) -> None:
    scored = score(answer, ["1853"], fault)
    assert scored.reward == pytest.approx(reward)
    assert scored.em == em
