"""Asks a question set with one strategy and records every answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from research.bench.metrics import retrieval_recall
from research.bench.records import Records
from research.episode.agent import Sampling, StopReason
from research.errors import ConditionsChangedError, ContextFullError, ProtocolError
from research.questions import Question
from research.scoring.ask import ask_each
from research.scoring.reward import best, cover_exact_match, exact_match, token_f1
from research.strategies import Strategy
from research.strategies.outcome import Outcome

# This many unanswered questions in a row mean that the service is unavailable.
_MAX_CONSECUTIVE_FAILURES = 32


async def ask_all(
    strategy: Strategy,
    questions: Sequence[Question],
    records: Records,
    *,
    sampling: Sampling,
    concurrency: int,
    version: str | None = None,
    on_answer: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Ask the questions that the records do not hold yet, `concurrency` at a time.

    Args:
        version: the weight version that must answer; None: any.

    Returns:
        Ids of the questions that could not be asked because a service was unavailable, each with the reason; the next
        call tries them again.

    Raises:
        ServiceError: 32 questions in a row could not be asked.
        ConditionsChangedError: other weights answered; their answers are not kept.
    """
    open_questions = [question for question in questions if question.id not in records.done]

    async def ask(question: Question, _: int) -> str | None:
        started = time.perf_counter()
        try:
            outcome = await strategy.answer(question.text, sampling)
        except ContextFullError:
            outcome = Outcome(question.text, stop_reason=StopReason.TOKEN_LIMIT)
        except ProtocolError as error:
            return str(error)  # what cannot be encoded, such as half a surrogate pair
        if version is not None and (others := set(outcome.versions) - {version}):
            raise ConditionsChangedError(
                f"weight version {', '.join(sorted(others))} answered instead of {version}: the policy got "
                "new weights. Earlier answers are kept; choose another directory for the new weights"
            )
        records.add(record_of(question, outcome, time.perf_counter() - started))
        on_answer()
        return None

    results = await ask_each(
        open_questions, ask, concurrency=concurrency, max_failures_in_a_row=_MAX_CONSECUTIVE_FAILURES
    )
    asked = zip(open_questions, results, strict=True)
    return {question.id: str(error) for question, error in asked if error is not None}


def record_of(question: Question, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """One line of the records: the question, its gold answers, the answer with its trace, the scores and the cost."""
    answer = outcome.answer or ""
    return {
        "id": question.id,
        "question": question.text,
        "kind": question.stratum,
        "entity": question.entity,
        "gold": list(question.answers),
        "answer": outcome.answer,
        "em": best(exact_match, answer, question.answers) if answer else 0.0,
        "f1": best(token_f1, answer, question.answers) if answer else 0.0,
        "cover_em": best(cover_exact_match, answer, question.answers) if answer else 0.0,
        "recall": retrieval_recall((passage.title for passage in outcome.passages), question.supporting_titles),
        "stop_reason": str(outcome.stop_reason),
        "format_fault": outcome.format_fault,
        "searches": outcome.searches,
        "prompt_tokens": outcome.prompt_tokens,
        "sampled_tokens": outcome.sampled_tokens,
        "result_tokens": outcome.result_tokens,
        "read_tokens": outcome.read_tokens,
        "seconds": {
            "generate": round(outcome.generate_seconds, 4),
            "search": round(outcome.search_seconds, 4),
            "total": round(seconds, 4),
        },
        "weight_versions": outcome.versions,
        "trace": [step.model_dump() for step in outcome.trace],
        "passages": [asdict(passage) for passage in outcome.passages],
    }
