"""Which questions can be asked at all: the prompt of one may be longer than the context, or impossible to encode."""

from __future__ import annotations

from collections.abc import Sequence

from research.episode.agent import SearchAgent
from research.errors import ConfigurationError, ProtocolError
from research.questions import Question

_NAMED = 5


def fitting(agent: SearchAgent, questions: Sequence[Question], setting: str) -> tuple[list[Question], dict[str, str]]:
    """The questions that an episode can begin with, in order, and by id why the others cannot be asked.

    Raises ConfigurationError, naming the `setting` that they come from, if none can be asked.
    """
    kept: list[Question] = []
    left_out: dict[str, str] = {}
    for question in questions:
        try:
            agent.begin(question.text)
        except ProtocolError as error:
            left_out[question.id] = str(error)
        else:
            kept.append(question)
    if not kept:
        why = next(iter(left_out.values()), "it is empty")
        raise ConfigurationError(f"{setting}: none of its {len(questions)} questions can be asked: {why}")
    return kept, left_out


def summary(left_out: dict[str, str], total: int, setting: str) -> str:
    """One line on what was left out, with the first ids and the first reason."""
    ids = ", ".join(list(left_out)[:_NAMED]) + (", …" if len(left_out) > _NAMED else "")
    why = next(iter(left_out.values()))
    return f"{setting}: {len(left_out)} of {total} questions are left out ({ids}), the first because {why}"
