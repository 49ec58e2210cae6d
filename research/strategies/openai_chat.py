"""Any model behind an OpenAI-compatible endpoint, for the strategies that only need chats."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from research.episode.agent import GREEDY, Sampling
from research.errors import ContextFullError, ServiceError
from research.http.service import HttpService
from research.strategies.chat import Completion, Message


# Of an answer, only what is read of it.
class _Message(TypedDict):
    content: NotRequired[str | None]


class _Choice(TypedDict):
    message: _Message
    finish_reason: NotRequired[str | None]


class _Usage(TypedDict, total=False):
    prompt_tokens: int | None
    completion_tokens: int | None


class _Completions(TypedDict):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: NotRequired[_Usage | None]


_COMPLETIONS = TypeAdapter(_Completions)


class OpenAIChat(HttpService):
    """A `ChatModel`.

    Args:
        url: of the API, with its version, as OpenAI's clients take it: `https://host/v1`.
        model: the endpoint's name for it.
        timeout: seconds for one completion.
        retries: further tries after a transient error.
        api_key: sent as a bearer token.
        busy_timeout: seconds for which an endpoint is waited for that says it is busy. Default: `timeout`.
    """

    kind = "model"

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout: float = 120.0,
        retries: int = 4,
        api_key: str | None = None,
        busy_timeout: float | None = None,
    ) -> None:
        super().__init__(
            url, name=f"the model {model}", timeout=timeout, retries=retries, token=api_key, busy_timeout=busy_timeout
        )
        self._model = model
        self._unknown: set[str] = set()

    async def complete(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Completion:
        """Write the next message.

        Raises:
            ContextFullError: the endpoint reports that the messages do not fit.
            ServiceError: as `request` does, or if the answer is invalid.
        """
        return await self._ask(messages, max_tokens, sampling, {"stop": list(stop)} if stop else {})

    async def complete_json(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, schema: Mapping[str, Any]
    ) -> Completion:
        """Write a JSON object; only an endpoint that supports schemas enforces this one."""
        named = {"name": "verdict", "schema": schema, "strict": True}
        form = {"response_format": {"type": "json_schema", "json_schema": named}}
        return await self._ask(messages, max_tokens, sampling, form)

    async def _ask(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, more: Mapping[str, Any]
    ) -> Completion:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [
                {"role": message.role, "content": _CONTROL_TOKEN.sub(r"\1 ", message.content)} for message in messages
            ],
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **more,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        answer = await self._request_with_fallbacks(body)
        told = self.as_form(_COMPLETIONS, answer)
        choice, usage = told["choices"][0], told.get("usage") or {}
        return Completion(
            text=choice["message"].get("content") or "",
            cut=choice.get("finish_reason") == "length",
            prompt_tokens=usage.get("prompt_tokens") or 0,
            sampled_tokens=usage.get("completion_tokens") or 0,
        )

    @property
    def takes_temperature(self) -> bool:
        """Whether the endpoint accepts a temperature; true until it refuses one."""
        return "temperature" not in self._unknown

    async def probe_capabilities(self) -> None:
        """Ask for one word, to learn which fields the endpoint refuses before anything is measured.

        Raises ServiceError if the endpoint does not answer.
        """
        await self._ask([Message("user", "Say yes.")], 16, GREEDY, {"stop": ["\n"]})

    async def _request_with_fallbacks(self, body: dict[str, Any]) -> Any:
        """Ask without the fields that the endpoint has refused; each request finds out on its own."""
        left_out = set(self._unknown)
        while True:
            try:
                return await self.request("POST", "/chat/completions", json=_without(body, left_out))
            except ServiceError as error:
                said = str(error).lower() if error.status in (400, 422) else ""
                if "context" in said and ("length" in said or "window" in said):
                    if _LIMIT in left_out:
                        raise ContextFullError(str(error)) from error
                    left_out.add(_LIMIT)  # for this request only: without a limit, messages and completion may fit
                    continue
                unknown = {name for name, words in _OPTIONAL.items() if any(word in said for word in words)}
                if not unknown - left_out:
                    raise
                left_out |= unknown
                self._unknown |= unknown


# An endpoint's tokenizer is not known here, and many turn such text inside a message into a control token: what the
# families of open models use is broken, as `break_special_tokens` does where the tokenizer is known.
_CONTROL_TOKEN = re.compile(
    r"([<\[])(?=[|｜][^|｜<>\s]{1,64}[|｜]>|/?INST\]|<?/?SYS>|/?s>|(?:bos|eos|pad|unk)>|(?:start|end)_of_turn>"
    r"|/?tool_(?:call|response)>)"
)
_LIMIT = "any limit"
# Fields that some endpoints refuse, with the words of the refusal: OpenAI's reasoning models want
# `max_completion_tokens` and take no temperature, and many servers do not support schemas.
_OPTIONAL = {
    "response_format": ("response_format", "json_schema"),
    "max_tokens": ("max_completion_tokens",),
    "stop": ("'stop'", '"stop"'),
    "temperature": ("'temperature'", '"temperature"', "temperature does not", "'top_p'", '"top_p"'),
}


def _without(body: Mapping[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    dropped = {"top_p", *left_out} if "temperature" in left_out else set(left_out)
    kept = {name: value for name, value in body.items() if name not in dropped}
    if _LIMIT in left_out:
        kept.pop("max_tokens", None)
    elif "max_tokens" in left_out:
        kept["max_completion_tokens"] = body["max_tokens"]
    return kept
