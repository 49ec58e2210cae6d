"""Ways to answer a question, by name: the paper's baselines, and ReSearch itself.

A baseline is an async function of `Session` and the question that returns the answer, or None; adding one is one small
file and one line here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from research.episode.agent import Sampling, SearchAgent, StopReason
from research.errors import ContextFullError
from research.settings import EpisodeConfig
from research.strategies.baselines import iter_retgen, naive_generation, naive_rag
from research.strategies.chat import ChatModel, ScoringRetriever, Session
from research.strategies.ircot import ircot
from research.strategies.outcome import Outcome, outcome_of

Baseline = Callable[[Session, str], Awaitable[str | None]]

RESEARCH = "research"
# Tokens per answer or thought of a baseline: ample for "answer only" and for one sentence.
MAX_COMPLETION_TOKENS = 512
BASELINES: dict[str, Baseline] = {
    "naive": naive_generation,
    "naive-rag": naive_rag,
    "iter-retgen": iter_retgen,
    "ircot": ircot,
}
STRATEGIES = (*BASELINES, RESEARCH)


class Strategy(Protocol):
    """Something that answers a question."""

    async def answer(self, question: str, sampling: Sampling) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class ReSearchStrategy:
    """The agent decides by itself when and what to search."""

    agent: SearchAgent

    async def answer(self, question: str, sampling: Sampling) -> Outcome:
        """Run one episode; raises what `SearchAgent.run` raises."""
        return outcome_of(await self.agent.run(question, sampling))


@dataclass(frozen=True, slots=True)
class BaselineStrategy:
    """A fixed plan over a chat model.

    Args:
        baseline: one of `BASELINES`.
        model: writes the text.
        retriever: finds the passages.
        top_k: passages per search.
        max_tokens: tokens per generation.
    """

    baseline: Baseline
    model: ChatModel
    retriever: ScoringRetriever
    top_k: int
    max_tokens: int

    @classmethod
    def named(cls, name: str, model: ChatModel, retriever: ScoringRetriever, limits: EpisodeConfig) -> BaselineStrategy:
        """One of `BASELINES` within the limits of an episode; each generation is short."""
        most = min(limits.max_turn_tokens or limits.max_tokens, MAX_COMPLETION_TOKENS)
        return cls(BASELINES[name], model, retriever, limits.top_k, most)

    async def answer(self, question: str, sampling: Sampling) -> Outcome:
        """Carry out the plan; there is no answer if the context is full (stop reason `token_limit`).

        Raises ServiceError if model or retriever failed for good.
        """
        outcome = Outcome(question)
        work = Session(self.model, self.retriever, self.top_k, self.max_tokens, sampling, outcome)
        try:
            outcome.answer = await self.baseline(work, question) or None
        except ContextFullError:
            outcome.stop_reason = StopReason.TOKEN_LIMIT
        return outcome
