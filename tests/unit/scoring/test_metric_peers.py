"""Peer review of the metrics: on thousands of generated cases they say what the implementations of others say.

SQuAD's script as transformers has it, FlashRAG's evaluator (whose F1 is HotpotQA's), and lm-eval's reader of boxes.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import files
from types import ModuleType
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.data.metrics import squad_metrics

from research.forms.grammar import extract_answer
from research.scoring.reward import best, exact_match, normalize_answer, token_f1

THOUSANDS = settings(max_examples=2000, deadline=None)

ARTICLES_AND_CLOSED = ["the", "a", "an", "The", "An", "a.", "yes", "no", "noanswer", "no answer", "Yes."]
NAMES = ["Paris", "paris,", "(city)", "U.S.", "1853", "12,5", "of", "theatre", "dog's", "the-end", "\u00a0"]
FOREIGN = ["Île-de-France", "naïve", "北京", "İstanbul"]
WORDS = st.sampled_from([*ARTICLES_AND_CLOSED, *NAMES, *FOREIGN])
TEXTS = st.one_of(st.lists(WORDS, max_size=5).map(" ".join), st.text(max_size=25))


def module_of(distribution: str, path: str) -> ModuleType:
    """One file of an installed distribution, without the rest of it (and all that the rest would import)."""
    found = next(file for file in files(distribution) or () if str(file) == path)
    spec = importlib.util.spec_from_file_location(path.removesuffix(".py").replace("/", "."), found.locate())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def flashrag() -> Any:
    name = "flashrag.evaluator.utils"
    sys.modules[name] = module_of("flashrag-dev", "flashrag/evaluator/utils.py")
    for package in ("flashrag", "flashrag.evaluator"):
        sys.modules[package] = ModuleType(package)
    try:
        yield module_of("flashrag-dev", "flashrag/evaluator/metrics.py")
    finally:
        for module in (name, "flashrag", "flashrag.evaluator"):
            del sys.modules[module]


@THOUSANDS
@given(TEXTS)
def test_normalisation_is_squads(text: str) -> None:
    assert normalize_answer(text) == squad_metrics.normalize_answer(text)


@THOUSANDS
@given(TEXTS, TEXTS)
@pytest.mark.slow
def test_exact_match_is_squads_where_the_gold_answer_says_anything(prediction: str, gold: str) -> None:
    # SQuAD 2 rewards saying nothing where there is nothing to say; our sets have no such question.
    assume(squad_metrics.normalize_answer(gold))
    assert exact_match(prediction, gold) == squad_metrics.compute_exact(gold, prediction)


@THOUSANDS
@given(TEXTS, TEXTS)
def test_f1_is_squads_but_for_closed_answers(prediction: str, gold: str) -> None:
    normalized = {squad_metrics.normalize_answer(text) for text in (prediction, gold)}
    assume("" not in normalized)
    assume(not normalized & {"yes", "no", "noanswer"} or len(normalized) == 1)
    assert token_f1(prediction, gold) == pytest.approx(squad_metrics.compute_f1(gold, prediction))


@pytest.mark.slow
def test_f1_and_exact_match_over_aliases_are_flashrags(flashrag: Any) -> None:
    scores = flashrag.F1_Score({"dataset_name": "hotpotqa"})
    match = flashrag.ExactMatch({"dataset_name": "hotpotqa"})

    @THOUSANDS
    @given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
    def compare(prediction: str, golds: list[str]) -> None:
        assume(all(map(normalize_answer, golds)))
        assert best(token_f1, prediction, golds) == pytest.approx(scores.token_level_scores(prediction, golds)["f1"])
        assert best(exact_match, prediction, golds) == match.calculate_em(prediction, golds)

    compare()


def test_the_last_box_is_lm_evals() -> None:
    lm_eval = module_of("lm_eval", "lm_eval/tasks/hendrycks_math/utils.py")
    pieces = st.sampled_from(["\\boxed{", "{", "}", "x", "Paris", " and ", "1889", "\n", "$"])

    @THOUSANDS
    @given(st.lists(pieces, max_size=12).map("".join))
    def compare(text: str) -> None:
        theirs = lm_eval.last_boxed_only_string(text)
        # Where the last box is never closed they give up, and we take the last one that is.
        assume(theirs is not None or "\\boxed" not in text)
        expected = lm_eval.remove_boxed(theirs).strip() or None if theirs else None
        assert extract_answer(f"<answer>{text}</answer>") == expected

    compare()
