"""The outcome of a strategy for a question: the answer, the way to it, and its cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from research.episode.agent import Episode, StopReason
from research.episode.trace import trace_of
from research.passages import Passage
from research.schemas import AnswerPassage, AnswerResponse, AnswerSeconds, AnswerUsage, Step


@dataclass(slots=True)
class Outcome:
    """One answered question.

    The model wrote `sampled_tokens`. It read `prompt_tokens` and, if results are inserted between its turns,
    `result_tokens`; `read_tokens` counts all input of each request, as an endpoint without a cache would charge it.
    `versions` are the weight versions that wrote, in order of appearance. `episode` is set if the strategy is
    ReSearch's own.
    """

    question: str
    answer: str | None = None
    stop_reason: StopReason = StopReason.ANSWERED
    format_fault: str | None = None
    trace: list[Step] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    searches: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    result_tokens: int = 0
    read_tokens: int = 0
    generate_seconds: float = 0.0
    search_seconds: float = 0.0
    versions: list[str] = field(default_factory=list)
    episode: Episode | None = None


def outcome_of(episode: Episode) -> Outcome:
    """An episode of ReSearch as an outcome."""
    passages: dict[str, Passage] = {}
    for passage in (passage for turn in episode.turns for passage in turn.passages):
        known = passages.get(passage.id, passage)
        passages[passage.id] = max(known, passage, key=lambda each: len(each.text))  # what was opened, or found whole
    return Outcome(
        question=episode.question,
        answer=episode.answer,
        stop_reason=episode.stop_reason,
        format_fault=episode.format_fault,
        trace=trace_of(episode),
        passages=list(passages.values()),
        searches=episode.searches,
        prompt_tokens=len(episode.prompt_ids),
        sampled_tokens=episode.sampled_tokens,
        result_tokens=len(episode.token_ids) - episode.sampled_tokens,
        read_tokens=_read_tokens(episode),
        generate_seconds=episode.generate_seconds,
        search_seconds=episode.search_seconds,
        versions=episode.weight_versions,
        episode=episode,
    )


def _read_tokens(episode: Episode) -> int:
    sampled = episode.sampled
    begun = [at for at in range(len(sampled)) if sampled[at] and not (at and sampled[at - 1])]
    return sum(len(episode.prompt_ids) + at for at in begun)


def answer_response(
    outcome: Outcome, total_seconds: float, strategy: str, adapter: str | None = None
) -> AnswerResponse:
    """The body of `/answer`; `adapter` names the LoRA adapter that wrote it."""
    return AnswerResponse(
        question=outcome.question,
        strategy=strategy,
        adapter=adapter,
        answer=outcome.answer,
        stop_reason=outcome.stop_reason,
        format_fault=outcome.format_fault,
        trace=outcome.trace,
        passages=[AnswerPassage(id=p.id, title=p.title, text=p.text) for p in outcome.passages],
        usage=AnswerUsage(
            prompt_tokens=outcome.prompt_tokens,
            sampled_tokens=outcome.sampled_tokens,
            result_tokens=outcome.result_tokens,
            searches=outcome.searches,
        ),
        seconds=AnswerSeconds(
            generate=round(outcome.generate_seconds, 4),
            search=round(outcome.search_seconds, 4),
            total=round(total_seconds, 4),
        ),
        weight_versions=outcome.versions,
    )
