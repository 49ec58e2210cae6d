"""A tokenizer of single characters plus special tokens, and scripted services: enough to test episodes exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from research.episode.agent import Finish, Generation, Sampling
from research.errors import ConfigurationError, ProtocolError
from research.passages import Passage
from research.prompts import Prompt

EOS = 1
SPECIALS = {"<|im_end|>": EOS, "<|im_start|>": 2}


class CharacterTokenizer:
    """One id a character (its code point + 10); the special tokens have ids of their own."""

    eos_id = EOS
    special_tokens = tuple(SPECIALS)

    def encode(self, text: str) -> list[int]:
        if any(token in text for token in SPECIALS):
            raise ProtocolError("special token in text")
        return [ord(character) + 10 for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        names = {number: name for name, number in SPECIALS.items()}
        return "".join(names[i] if i in names else chr(i - 10) for i in ids if i != EOS)

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [2, *self.encode("\n".join(message["content"] for message in messages))]

    def prompt_ids(self, prompt: Prompt, question: str) -> list[int]:
        return [2, *self.encode(question)]

    def reply_ids(self, text: str, *, empty: str, ended: bool) -> list[int]:
        raise ConfigurationError("no chat template")


@dataclass
class Script:
    """A policy that writes prepared turns; a turn that ends in `$` ends by itself, one in `…` ran out of tokens."""

    turns: list[str]
    prompts: list[list[int]] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        text = self.turns[len(self.prompts)]
        self.prompts.append(list(prompt_ids))
        self.budgets.append(max_tokens)
        ids = CharacterTokenizer().encode(text.rstrip("$…"))
        finish = {"$": Finish.EOS, "…": Finish.LENGTH}.get(text[-1], Finish.SEARCH)
        if finish is Finish.EOS:
            ids.append(EOS)
        version = str(len(self.prompts))
        return Generation(ids, [-0.5] * len(ids), [version] * len(ids), finish)


@dataclass
class Shelf:
    """A retriever that always finds the same passages."""

    passages: list[Passage]
    queries: list[tuple[str, int]] = field(default_factory=list)

    async def search(self, query: str, top_k: int) -> list[Passage]:
        self.queries.append((query, top_k))
        return self.passages[:top_k]
