"""A chat model over token-in/token-out: the same tokens, whether asked over HTTP or inside the policy server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from research.episode.agent import Finish, Policy, Sampling
from research.episode.tokenizer import Decoder, text_of
from research.errors import ContextFullError
from research.strategies.chat import Completion, Message


class ChatTokenizer(Decoder, Protocol):
    """Chats to ids, and ids to text."""

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class TokenChat:
    """A `ChatModel`; `context_length` is the model's, in tokens."""

    policy: Policy
    tokenizer: ChatTokenizer
    context_length: int

    async def complete(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Completion:
        """Write the next message. Raises ContextFullError if the messages fill the context."""
        ids = self.tokenizer.chat_ids([asdict(message) for message in messages])
        room = min(max_tokens, self.context_length - len(ids))
        if room <= 0:
            raise ContextFullError(
                f"the prompt takes {len(ids)} tokens and leaves no room in a context of {self.context_length}; lower "
                "top_k or raise model.max_model_len"
            )
        generation = await self.policy.generate(ids, room, replace(sampling, stop=tuple(stop)))
        return Completion(
            text=text_of(generation.token_ids, self.tokenizer, ended=generation.finish is Finish.EOS),
            cut=generation.finish in (Finish.LENGTH, Finish.TIME),
            prompt_tokens=len(ids),
            sampled_tokens=len(generation.token_ids),
            versions=list(dict.fromkeys(generation.versions)),
        )
