"""A chat model as strategies call it, and the record that each keeps of its calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from research.episode.agent import Sampling, StopReason
from research.passages import Passage, ScoredPassage
from research.schemas import Step
from research.strategies.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote, whether it was cut off, and the tokens it took."""

    text: str
    cut: bool
    prompt_tokens: int
    sampled_tokens: int
    versions: list[str] = field(default_factory=list)


class ChatModel(Protocol):
    """Something that writes the next message of a chat."""

    async def complete(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Completion: ...


class ScoringRetriever(Protocol):
    """Something that finds passages and scores how well they match."""

    async def search_scored(self, query: str, top_k: int) -> list[ScoredPassage]: ...


@dataclass(slots=True)
class Session:
    """One question being answered: calls model and retriever, and records the results."""

    model: ChatModel
    retriever: ScoringRetriever
    top_k: int
    max_tokens: int
    sampling: Sampling
    outcome: Outcome

    async def search(self, query: str) -> list[ScoredPassage]:
        """Passages for a query, best first, recorded in the trace."""
        started = time.perf_counter()
        scored = await self.retriever.search_scored(query, self.top_k)
        found = [each.passage for each in scored]
        outcome = self.outcome
        outcome.search_seconds += time.perf_counter() - started
        outcome.searches += 1
        known = {passage.id for passage in outcome.passages}
        outcome.passages += [passage for passage in found if passage.id not in known]
        outcome.trace += [
            Step(kind="search", text=query),
            Step(kind="result", text=documents(found), passages=[passage.id for passage in found]),
        ]
        return scored

    async def write(
        self, messages: Sequence[Message], kind: Literal["think", "answer"], stop: Sequence[str] = ()
    ) -> str:
        """The model's next message, recorded in the trace as a thought or an answer."""
        started = time.perf_counter()
        written = await self.model.complete(messages, self.max_tokens, self.sampling, stop)
        outcome = self.outcome
        outcome.generate_seconds += time.perf_counter() - started
        outcome.prompt_tokens += written.prompt_tokens
        outcome.read_tokens += written.prompt_tokens
        outcome.sampled_tokens += written.sampled_tokens
        outcome.versions += [version for version in written.versions if version not in outcome.versions]
        outcome.stop_reason = StopReason.TOKEN_LIMIT if written.cut else StopReason.ANSWERED
        text = written.text.strip()
        outcome.trace.append(Step(kind=kind, text=text))
        return text


def documents(passages: Sequence[Passage]) -> str:
    """Passages as a prompt lists them: number, title and text, one line each (FlashRAG's form)."""
    return "\n".join(
        f"Doc {number}(Title: {passage.title}) {passage.text}" for number, passage in enumerate(passages, 1)
    )
