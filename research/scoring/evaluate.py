"""Evaluation: the agent answers a question set, greedily, and its answers become figures by kind of question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from research.episode.agent import GREEDY, Episode, Sampling, SearchAgent
from research.episode.search_analysis import corrected_queries
from research.errors import ProtocolError, ServiceError
from research.http import request_id
from research.questions import Question
from research.scoring.ask import ask_each
from research.scoring.reward import Score, score
from research.scoring.signs import Signs, signs_of


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the episode that answered it and its score."""

    question: Question
    episode: Episode
    score: Score


@dataclass(frozen=True, slots=True)
class KindFigures:
    """Means over the `n` answers to one kind of question; `failed` questions could not be asked and count in no figure.

    `corrected` is the share of episodes that replaced an unhelpful search by a helpful one (see `corrected_queries`);
    `signs` are those of a step, too.
    """

    n: int
    em: float
    f1: float
    reward: float
    searches: float
    well_formed: float
    truncated: float
    corrected: float
    failed: int
    signs: Signs = field(default_factory=Signs)


Outcome = Answered | ServiceError | ProtocolError


async def evaluate(
    agent: SearchAgent,
    questions: Sequence[Question],
    *,
    sampling: Sampling = GREEDY,
    concurrency: int,
    on_answer: Callable[[], None] = lambda: None,
) -> tuple[list[Answered], dict[str, KindFigures]]:
    """Ask every question, greedily by default.

    Returns:
        The answers, in the order of the questions, and the figures of each kind (new templates separate).
    """
    outcomes = await ask_questions(
        agent, list(enumerate(questions)), sampling=sampling, concurrency=concurrency, on_answer=on_answer
    )
    return figures_of(questions, outcomes)


async def ask_questions(
    agent: SearchAgent,
    questions: Sequence[tuple[int, Question]],
    *,
    sampling: Sampling,
    concurrency: int,
    on_answer: Callable[[], None],
    name: str = "evaluation",
) -> list[Outcome]:
    """Ask questions, each with its number in the evaluation, from which its own seed follows.

    With `name` before it, the number names the requests for a question.

    Returns:
        What became of each: its answer, or why it could not be asked: a service failed, or something in it cannot be
        encoded.
    """

    async def ask(numbered: tuple[int, Question], _: int) -> Answered | ProtocolError:
        number, question = numbered
        # The same question may be asked several times: each time with its own seed.
        own = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + number)
        try:
            with request_id.working_on(f"{name}.{number}"):
                episode = await agent.for_episode(question.id).run(question.text, own)
        except ProtocolError as error:
            return error
        finally:
            on_answer()
        return Answered(question, episode, score(episode.answer, question.answers, episode.format_fault))

    return list(await ask_each(questions, ask, concurrency=concurrency))


def figures_of(
    questions: Sequence[Question], outcomes: Sequence[Outcome]
) -> tuple[list[Answered], dict[str, KindFigures]]:
    """The answers among the outcomes of questions, and the figures of each kind."""
    answered = [outcome for outcome in outcomes if isinstance(outcome, Answered)]
    failed: dict[str, int] = defaultdict(int)
    for question, outcome in zip(questions, outcomes, strict=True):
        failed[question.stratum] += not isinstance(outcome, Answered)
    kinds = dict.fromkeys(question.stratum for question in questions)
    by_kind = {kind: [a for a in answered if a.question.stratum == kind] for kind in kinds}
    return answered, {kind: _figures(by_kind[kind], failed[kind]) for kind in kinds}


def pass_at_k(answered: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """From (question id, kind, EM) of k samples each: the share of questions of a kind that any sample got right."""
    solved: dict[str, dict[str, bool]] = defaultdict(dict)
    for question, kind, em in answered:
        solved[kind][question] = solved[kind].get(question, False) or em == 1.0
    return {kind: fmean(outcomes.values()) for kind, outcomes in solved.items()}


def figures_as_dict(figures: dict[str, KindFigures]) -> dict[str, Any]:
    """The figures for JSON, signs among the others."""
    flat: dict[str, Any] = {}
    for kind, values in figures.items():
        flat[kind] = asdict(values)
        flat[kind] |= flat[kind].pop("signs")
    return flat


def _figures(answered: Sequence[Answered], failed: int) -> KindFigures:
    if not answered:
        return KindFigures(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, failed)
    return KindFigures(
        n=len(answered),
        em=fmean(a.score.em for a in answered),
        f1=fmean(a.score.f1 for a in answered),
        reward=fmean(a.score.reward for a in answered),
        searches=fmean(a.episode.searches for a in answered),
        well_formed=fmean(a.episode.format_fault is None for a in answered),
        truncated=fmean(a.episode.stop_reason.truncated for a in answered),
        corrected=fmean(corrected_queries(a.episode, a.question) > 0 for a in answered),
        failed=failed,
        signs=signs_of([(a.question, a.episode, a.score) for a in answered]),
    )
