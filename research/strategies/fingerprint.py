"""The hash of a strategy's prompts: it changes with any word, or any other form of passages, that a model would see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from research.episode import Sampling
from research.passages import Passage, ScoredPassage
from research.strategies import Baseline
from research.strategies.chat import Completion, Message, Work
from research.strategies.outcome import Outcome

_PASSAGES = [ScoredPassage(Passage("1", "Title", "Text."), 0.5), ScoredPassage(Passage("2", "Other", "More."), 0.25)]


@dataclass(slots=True)
class _Recorder:
    """Stands for model and retriever, and writes down what it is asked."""

    asked: list[object] = field(default_factory=list)

    async def complete(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Completion:
        self.asked.append([*map(asdict, messages), list(stop)])
        return Completion("So it is.", cut=False, prompt_tokens=0, sampled_tokens=0)

    async def search_scored(self, query: str, top_k: int) -> list[ScoredPassage]:
        self.asked.append(query)
        return _PASSAGES


async def prompt_hash(baseline: Baseline) -> str:
    """SHA-256 of all that a baseline asks model and retriever for one question, given fixed answers."""
    recorder = _Recorder()
    await baseline(Work(recorder, recorder, 2, 1, Sampling(0.0), Outcome("Who?")), "Who?")
    return hashlib.sha256(json.dumps(recorder.asked).encode()).hexdigest()
