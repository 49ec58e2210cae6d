"""Rewards by name, and functions of the user's own: each maps a question and its finished episode to a number."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

from research.episode.agent import Episode
from research.errors import ConfigurationError, TrainingError
from research.questions import Question
from research.scoring.reward import best, cover_exact_match, score
from research.settings.reward import RewardConfig

RewardFunction = Callable[[Question, Episode], float]


def f1_reward(question: Question, episode: Episode) -> float:
    """The paper's: 0 for bad form, else F1, or 0.1 where that is 0."""
    return score(episode.answer, question.answers, episode.format_fault).reward


def em_reward(question: Question, episode: Episode) -> float:
    """1 for an exact match in good form, else 0."""
    return 0.0 if episode.format_fault else score(episode.answer, question.answers, None).em


def cover_em_reward(question: Question, episode: Episode) -> float:
    """1 if the answer holds a gold answer as whole words, in good form, else 0."""
    if episode.format_fault or episode.answer is None:
        return 0.0
    return best(cover_exact_match, episode.answer, question.answers)


def format_reward(question: Question, episode: Episode) -> float:
    """1 for good form, else 0."""
    return float(episode.format_fault is None)


def penalized_f1_reward(question: Question, episode: Episode, reward: RewardConfig) -> float:
    """F1 in good form, else 0, minus what is taken for no answer, no search and bad form.

    Bare F1 is known to end in answers avoided (Search-R1++, https://arxiv.org/abs/2602.19526); this makes them cost.
    """
    malformed = episode.format_fault is not None
    earned = 0.0 if malformed else score(episode.answer, question.answers, None).f1
    return (
        earned
        - reward.no_answer_penalty * (episode.answer is None)
        - reward.no_search_penalty * (episode.searches == 0)
        - reward.malformed_penalty * malformed
    )


def reward_functions(reward: RewardConfig) -> dict[str, RewardFunction]:
    """The function of each term but `judge`, which asks a model.

    Raises ConfigurationError if a function of the user's own cannot be imported.
    """
    known: dict[str, RewardFunction] = {
        "f1": f1_reward,
        "em": em_reward,
        "cover_em": cover_em_reward,
        "format": format_reward,
        "f1_penalized": lambda question, episode: penalized_f1_reward(question, episode, reward),
    }
    return {name: known.get(name) or _own(name) for name in reward.terms if name != "judge"}


def _own(name: str) -> RewardFunction:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"reward.terms: {name}: {error}; install the module, or put its folder on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ConfigurationError(f"reward.terms: {name}: {error}") from error
    except Exception as error:
        raise ConfigurationError(f"reward.terms: {module_name} cannot be imported: {error!r}") from error
    if not callable(function):
        raise ConfigurationError(f"reward.terms: {name} is {function!r}, not a function")
    return lambda question, episode: _checked(name, function, question, episode)


def _checked(name: str, function: Callable[..., object], question: Question, episode: Episode) -> float:
    try:
        value = function(question, episode)
    except Exception as error:
        raise TrainingError(f"reward.terms: {name} raised {error!r} on an episode of question {question.id}") from error
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TrainingError(
            f"reward.terms: {name} returned {value!r} on an episode of question {question.id}; it must return a finite "
            "number (as a float, not of numpy or torch)"
        )
    return float(value)
