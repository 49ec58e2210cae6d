"""The tokenizer as an episode needs it, over any Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from research.episode.protocol import break_special_tokens
from research.errors import ConfigurationError, ProtocolError
from research.prompts import Prompt


class Tokenizer(Protocol):
    """Text to ids and back, without ever adding special tokens by itself; several threads may use it at a time."""

    eos_id: int
    special_tokens: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; raises ProtocolError if the text yields a special token."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def prompt_ids(self, prompt: Prompt, question: str) -> list[int]: ...


class HuggingFaceTokenizer:
    """Adapts a `transformers` tokenizer object; it is passed in, so that this library needs no transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.special_tokens = tuple(sorted(added | set(tokenizer.all_special_tokens)))
        tokenizer.encode("")  # the first call changes what later ones only read, from any thread
        self._special_ids = frozenset(tokenizer.convert_tokens_to_ids(list(self.special_tokens)))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        if not self._special_ids.isdisjoint(ids):
            raise ProtocolError("text to be inserted into an episode encodes to special tokens; neutralize it first")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            [i for i in ids if i != self.eos_id],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return text

    def prompt_ids(self, prompt: Prompt, question: str) -> list[int]:
        """Prompt ids up to where the assistant begins.

        A question is the user's text, but it may not smuggle control tokens in: they are encoded as plain text.
        """
        question = self._plain(question)
        if prompt.is_raw:
            return self.encode(prompt.fill(question))
        if self._tokenizer.chat_template is None:
            raise ConfigurationError(
                f"episode.prompt: {prompt.name} is a system message, but the model has no chat template; "
                "choose a raw prompt such as research-base"
            )
        return self._of_messages([{"role": "system", "content": prompt.text}, {"role": "user", "content": question}])

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a chat up to where the assistant begins; no message may smuggle control tokens in.

        A model without a chat template reads the messages as plain paragraphs.
        """
        clean = [{**message, "content": self._plain(message["content"])} for message in messages]
        if self._tokenizer.chat_template is None:
            return self.encode("\n\n".join(message["content"] for message in clean))
        return self._of_messages(clean)

    def _plain(self, text: str) -> str:
        return break_special_tokens(text, self.special_tokens)

    def _of_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
