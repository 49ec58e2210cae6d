"""The tokenizer as an episode needs it, over any Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from research.errors import ConfigurationError, ProtocolError
from research.forms.form import Chat, PromptForm
from research.forms.grammar import break_special_tokens
from research.prompts import Prompt


class Decoder(Protocol):
    """Ids to text."""

    @property
    def special_tokens(self) -> tuple[str, ...]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def text_of(ids: Sequence[int], tokenizer: Decoder, *, ended: bool) -> str:
    """What a model wrote, without the token that `ended` it: a model may have others than the tokenizer's."""
    if ended and tokenizer.decode(ids[-1:]) in tokenizer.special_tokens:
        ids = ids[:-1]
    return tokenizer.decode(ids)


class Tokenizer(Protocol):
    """Text to ids and back, without ever adding special tokens by itself; several threads may use it at a time.

    `special_tokens` are the texts that stand for one token with a meaning of its own.
    """

    eos_id: int
    special_tokens: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; raises ProtocolError if the text yields a control token, or cannot be encoded."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def prompt_ids(self, prompt: Prompt, question: str) -> list[int]: ...

    def reply_ids(self, text: str, *, empty: str, ended: bool) -> list[int]: ...


# To see what a chat template makes of a chat. Not with a system message: some write it into the last user's message.
_QUESTION, _WROTE, _REPLY = "Who is asked for?", "What the model wrote.", "What it is told."
_CHAT: tuple[Mapping[str, object], ...] = (
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": _WROTE},
)
_TOLD = ({"role": "system", "content": "Be brief."}, *_CHAT[:1])
_QUERY = "Paris"
_CALL = {"name": "search", "arguments": {"query": _QUERY}}
_CALLED = (
    *_CHAT[:1],
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "search001", "function": _CALL}]},
)


class HuggingFaceTokenizer:
    """Adapts a `transformers` tokenizer object; it is passed in, so that this library needs no transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        added = tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        # Qwen's `<tool_call>` and `<|fim_prefix|>` are not "special", but no text of a stranger may become one either.
        # Added words and runs of spaces are plain text.
        markup = {str(token) for token in added if any(not c.isalnum() and not c.isspace() for c in str(token))}
        self.special_tokens = tuple(sorted(special | markup))
        tokenizer.encode("")  # the first call changes what later ones only read, from any thread
        # Not those of markup: a prompt may show `<think>` to a model for which that is a token.
        self._special_ids = frozenset(tokenizer.convert_tokens_to_ids(list(special)))
        self._told: dict[str, bool] = {}  # of a form by name: whether the chat template tells it

    def encode(self, text: str) -> list[int]:
        ids = self._ids(text)
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
        question, chat = self._plain(question), prompt.form.chat
        has_template = self._tokenizer.chat_template is not None
        if prompt.is_raw and chat.filled and has_template:
            return self._of_messages([{"role": "user", "content": prompt.fill(question)}])
        if prompt.is_raw and not chat.tools:
            return self.encode(prompt.fill(question))
        if prompt.is_raw:
            raise ConfigurationError(
                f"episode.prompt: {prompt.name} is a raw text, but the form {prompt.form.name} needs a system message"
            )
        if not has_template:
            raise ConfigurationError(
                f"episode.prompt: {prompt.name} is a system message, but the model has no chat template; "
                "choose a raw prompt such as research-base"
            )
        rules = prompt.text
        if chat.tools:
            _ = self._around_reply  # refused now, not at the first search
            if not self._tells(prompt.form):
                rules, chat = f"{rules}\n\n{chat.tools_text}", Chat()
        messages = [{"role": "system", "content": rules}, {"role": "user", "content": question}]
        return self._of_messages(messages, chat.tools)

    def reply_ids(self, text: str, *, empty: str, ended: bool) -> list[int]:
        """Ids of a message to the model in mid-chat, as its template writes it, up to where the model goes on.

        Args:
            text: what the message holds.
            empty: the same without a passage; raises ProtocolError if `text` holds other control tokens than this.
            ended: whether the model has written the token that ends its own message.
        """
        before, after = self._around_reply
        if not ended:
            before = self._tokenizer.eos_token + before
        ids = self._ids(before + text + after)
        if self._controls(ids) != self._controls(self._ids(before + empty + after)):
            raise ProtocolError("text to be inserted into an episode encodes to special tokens; neutralize it first")
        return ids

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

    def _of_messages(
        self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = ()
    ) -> list[int]:
        return self._ids(self._rendered(messages, tools))

    def _rendered(self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = ()) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of the model's, and refuses what it does not know
            raise ConfigurationError(
                f"the model's chat template refuses a chat of {', '.join(str(each['role']) for each in messages)} "
                f"({error}); choose another episode.prompt or model.name"
            ) from error
        return text

    def _tells(self, form: PromptForm) -> bool:
        """Whether the template tells a model of the form's tools, and writes calls of them as the form reads them.

        A template that tells of tools in a form of its own would have the model ask in a way that nobody reads.
        """
        if form.name not in self._told:
            self._told[form.name] = self._writes_calls(form)
        return self._told[form.name]

    def _writes_calls(self, form: PromptForm) -> bool:
        tools = form.chat.tools
        try:
            told = self._rendered(_TOLD, tools) != self._rendered(_TOLD)
            call = self._rendered(_CALLED, tools).rpartition(_QUESTION)[2]
        except ConfigurationError:
            return False
        return told and form.query(call) == _QUERY

    @cached_property
    def _around_reply(self) -> tuple[str, str]:
        """What the template writes between the end of the model's message and a user's text, and after that."""
        end = self._tokenizer.eos_token
        rest = self._rendered((*_CHAT, {"role": "user", "content": _REPLY})).rpartition(_WROTE)[2]
        before, found, after = rest.partition(_REPLY)
        if not found or not before.startswith(end):
            raise ConfigurationError(
                f"episode.prompt: its form has messages between searches, but the model ends its text with {end} and "
                "its chat template no message with that; choose a chat model, or a prompt in the form of tags"
            )
        if any(text in before + after for text in (_QUESTION, _WROTE, _REPLY)):
            raise ConfigurationError(
                "episode.prompt: its form has messages between searches, but the model's chat template repeats former "
                "messages around a later one; choose another chat model, or a prompt in the form of tags"
            )
        if after.count("<think>") > after.count("</think>"):
            raise ConfigurationError(
                "episode.prompt: in its form the model opens its thoughts itself, but its chat template does that; "
                "choose a model that writes `<think>`, or a prompt in the form of tags"
            )
        return before.removeprefix(end), after

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._special_ids]

    def _ids(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:  # how `tokenizers` refuses lone surrogates
            raise ProtocolError("a text cannot be encoded: it holds half of a surrogate pair") from error
        return ids
