"""Evaluation: a question set goes through the agent, greedily, and comes out as figures by kind of question."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from research.episode import Episode, Sampling, SearchAgent
from research.errors import ServiceError
from research.questions import Question
from research.reward import Score, score

GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the episode that answered it and its score."""

    question: Question
    episode: Episode
    score: Score


@dataclass(frozen=True, slots=True)
class KindFigures:
    """Means over the `n` questions of one kind; `failed` could not be asked and count as wrong in no figure."""

    n: int
    em: float
    f1: float
    reward: float
    searches: float
    well_formed: float
    truncated: float
    failed: int


async def evaluate(
    agent: SearchAgent,
    questions: Sequence[Question],
    *,
    concurrency: int,
    on_answer: Callable[[], None] = lambda: None,
) -> tuple[list[Answered], dict[str, KindFigures]]:
    """Ask every question greedily.

    Returns:
        What was answered, in the order of the questions, and the figures of each kind.
    """
    slots = asyncio.Semaphore(concurrency)

    async def ask(question: Question) -> Answered | None:
        async with slots:
            try:
                episode = await agent.run(question.text, GREEDY)
            except ServiceError:
                return None
            finally:
                on_answer()
        return Answered(question, episode, score(episode.answer, question.answers, episode.format_fault))

    results = await asyncio.gather(*(ask(question) for question in questions))
    answered = [result for result in results if result is not None]
    failed: dict[str, int] = defaultdict(int)
    for question, result in zip(questions, results, strict=True):
        failed[question.kind] += result is None
    kinds = dict.fromkeys(question.kind for question in questions)
    return answered, {kind: _figures([a for a in answered if a.question.kind == kind], failed[kind]) for kind in kinds}


def figures_as_dict(figures: dict[str, KindFigures]) -> dict[str, Any]:
    """For JSON."""
    return {kind: asdict(values) for kind, values in figures.items()}


def _figures(answered: Sequence[Answered], failed: int) -> KindFigures:
    if not answered:
        return KindFigures(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, failed)
    return KindFigures(
        n=len(answered),
        em=fmean(a.score.em for a in answered),
        f1=fmean(a.score.f1 for a in answered),
        reward=fmean(a.score.reward for a in answered),
        searches=fmean(a.episode.searches for a in answered),
        well_formed=fmean(a.episode.format_fault is None for a in answered),
        truncated=fmean(a.episode.stop_reason.truncated for a in answered),
        failed=failed,
    )
