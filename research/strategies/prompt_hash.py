"""The hash of a strategy's prompts: it changes with any word, or any format of passages, that a model would see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from research.episode.agent import GREEDY, Sampling
from research.passages import Passage, ScoredPassage
from research.strategies import Baseline
from research.strategies.chat import Completion, Message, Session
from research.strategies.outcome import Outcome

_FIRST, _SECOND = Passage("1", "Title", "Text."), Passage("2", "Other", "More.")
# What successive searches find: later ones find a passage again, with another score.
_FOUND = ([ScoredPassage(_FIRST, 0.5), ScoredPassage(_SECOND, 0.25)], [ScoredPassage(_SECOND, 0.75)])
# What the model writes in successive calls: sentences, and a way to end.
_SCRIPTS = (("So it is. And more.",) * 9, ("So it is. And more.", "It is so. So the answer is: it."))


@dataclass(slots=True)
class _Recorder:
    """Stands in for model and retriever, and records each request."""

    script: tuple[str, ...]
    asked: list[object] = field(default_factory=list)
    written: int = 0
    searched: int = 0

    async def complete(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Completion:
        self.asked.append([*map(asdict, messages), max_tokens, list(stop)])
        text = self.script[min(self.written, len(self.script) - 1)]
        self.written += 1
        return Completion(text, cut=False, prompt_tokens=0, sampled_tokens=0)

    async def search_scored(self, query: str, top_k: int) -> list[ScoredPassage]:
        self.asked.append([query, top_k])
        self.searched += 1
        return _FOUND[min(self.searched, len(_FOUND)) - 1]


async def prompt_hash(baseline: Baseline) -> str:
    """SHA-256 of a baseline's requests to model and retriever, and its answer, for one question and fixed replies."""
    transcripts = []
    for script in _SCRIPTS:
        recorder = _Recorder(script)
        answer = await baseline(Session(recorder, recorder, 2, 1, GREEDY, Outcome("Who?")), "Who?")
        transcripts.append([recorder.asked, answer])
    return hashlib.sha256(json.dumps(transcripts).encode()).hexdigest()
