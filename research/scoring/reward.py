"""Answer metrics and the outcome reward (ReSearch, section 2.3 and its released code; protocol notes, section 2)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

GOOD_FORMAT_REWARD = 0.1

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


@dataclass(frozen=True, slots=True)
class Score:
    """What an episode is worth: `reward` for training, `em` and `f1` in [0, 1], and why.

    `terms` are what the reward was summed up of, unweighted; none where it is the plain one (`score`).
    """

    reward: float
    em: float
    f1: float
    reason: str
    terms: dict[str, float] = field(default_factory=dict)


def normalize_answer(text: str) -> str:
    """SQuAD normalization: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 if both normalize to the same non-empty text."""
    normalized = normalize_answer(gold)
    return float(bool(normalized) and normalize_answer(prediction) == normalized)


def token_f1(prediction: str, gold: str) -> float:
    """F1 over normalized tokens; a yes/no/noanswer that differs from the other side is 0, as in HotpotQA's script."""
    predicted, expected = normalize_answer(prediction), normalize_answer(gold)
    if predicted != expected and {predicted, expected} & _CLOSED_ANSWERS:
        return 0.0
    predicted_tokens, expected_tokens = predicted.split(), expected.split()
    common = sum((Counter(predicted_tokens) & Counter(expected_tokens)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted_tokens), common / len(expected_tokens)
    return 2 * precision * recall / (precision + recall)


def cover_exact_match(prediction: str, gold: str) -> float:
    """1.0 if the normalized gold answer occurs in the normalized prediction as whole words (Rosset et al., 2020)."""
    wanted, words = normalize_answer(gold).split(), normalize_answer(prediction).split()
    if not wanted:
        return 0.0
    return float(any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1)))


def best(metric: Callable[[str, str], float], prediction: str, golds: Sequence[str]) -> float:
    """The maximum of a metric over the gold answers and aliases; 0.0 if there are none."""
    return max((metric(prediction, gold) for gold in golds), default=0.0)


def score(answer: str | None, golds: Sequence[str], format_fault: str | None) -> Score:
    """Score a finished episode.

    Format comes first: a malformed episode earns 0. A well-formed one earns its F1, or 0.1 where that is 0.
    EM and F1 count whatever answer could be read, so that evaluation does not depend on the format.
    """
    em = best(exact_match, answer, golds) if answer else 0.0
    f1 = best(token_f1, answer, golds) if answer else 0.0
    if format_fault is not None:
        return Score(0.0, em, f1, f"bad format: {format_fault}")
    if f1 > 0:
        return Score(f1, em, f1, "exact match" if em else f"F1 {f1:.2f}")
    return Score(GOOD_FORMAT_REWARD, em, f1, "well formed, wrong answer")
