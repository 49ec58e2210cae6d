"""An agent whose model writes what a test gives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from research.episode.agent import Finish, Generation, Sampling, SearchAgent
from research.episode.tokenizer import Tokenizer
from research.errors import ServiceError
from research.passages import Passage, ScoredPassage
from research.prompts import Prompt
from research.settings import EpisodeConfig

TURNS = [
    "<think>Who painted it?</think>\n<search>Starry Night painter</search>",
    "<think>Van Gogh.</think>\n<answer>\\boxed{Vincent van Gogh}</answer>",
]


@dataclass
class Scripted:
    """Writes given turns, three letters at a time; may be told to stop for ever or to fail in the second."""

    tokenizer: Tokenizer
    turns: list[str]
    behaviour: str = "writes"
    on_text: Callable[[str], None] | None = None
    asked: list[int] = field(default_factory=list)
    cancelled: list[bool] = field(default_factory=list)
    stop: tuple[str, ...] = ("</search>",)

    def with_callback(self, on_text: Callable[[str], None]) -> Scripted:
        return replace(self, on_text=on_text)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        text = self.turns[len(self.asked)]
        self.asked.append(len(prompt_ids))
        if len(self.asked) == 2 and self.behaviour == "fails":
            raise ServiceError("the engine is gone")
        try:
            for start in range(0, len(text), 3):
                if self.on_text:
                    self.on_text(text[start : start + 3])
                await asyncio.sleep(0)
            if len(self.asked) == 2 and self.behaviour == "hangs":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(True)
            raise
        finish = Finish.SEARCH if text.endswith(self.stop) else Finish.EOS
        ids = self.tokenizer.encode(text) + [self.tokenizer.eos_id] * (finish is Finish.EOS)
        return Generation(ids, [0.0] * len(ids), ["0"] * len(ids), finish)


class OnePassage:
    async def search_scored(self, query: str, top_k: int) -> list[ScoredPassage]:
        return [ScoredPassage(passage, 0.9) for passage in await self.search(query, top_k)]

    async def search(self, query: str, top_k: int) -> list[Passage]:
        return [Passage("7", "The Starry Night", f"found for {query}")]


def agent_for(policy: Scripted) -> SearchAgent:
    limits = EpisodeConfig(prompt="research-small", top_k=1, max_searches=2, max_tokens=2000)
    return SearchAgent(policy, OnePassage(), policy.tokenizer, Prompt("raw", "{question}"), limits, 4000)
