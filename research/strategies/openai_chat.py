"""Any model behind an OpenAI-compatible endpoint, for the strategies that only need chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from research.clients import HttpService
from research.episode import Sampling
from research.errors import ServiceError
from research.strategies.chat import Completion, Message


class OpenAIChat(HttpService):
    """A `ChatModel`.

    Args:
        url: of the API, with its version, as OpenAI's clients take it: `https://host/v1`.
        model: the name that the endpoint knows it by.
        timeout: seconds for one completion.
        retries: further tries after an error that may pass.
        api_key: sent as a bearer token.
    """

    def __init__(
        self, url: str, model: str, *, timeout: float = 120.0, retries: int = 4, api_key: str | None = None
    ) -> None:
        super().__init__(url, name=f"the model {model}", timeout=timeout, retries=retries, token=api_key)
        self._model = model
        self._knows_schemas = True

    async def complete(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Completion:
        """Write the next message; raises ServiceError as `request` does, or if the answer is none."""
        return await self._ask(messages, max_tokens, sampling, {"stop": list(stop)} if stop else {})

    async def complete_json(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, schema: Mapping[str, Any]
    ) -> Completion:
        """Write a JSON object; an endpoint that knows schemas keeps to it, others are only told."""
        named = {"name": "verdict", "schema": schema, "strict": True}
        form = {"response_format": {"type": "json_schema", "json_schema": named}}
        try:
            return await self._ask(messages, max_tokens, sampling, form if self._knows_schemas else {})
        except ServiceError as error:
            if error.status not in (400, 422) or not self._knows_schemas:
                raise
            self._knows_schemas = False
            return await self._ask(messages, max_tokens, sampling, {})

    async def _ask(
        self, messages: Sequence[Message], max_tokens: int, sampling: Sampling, more: Mapping[str, Any]
    ) -> Completion:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [asdict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **more,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        answer = await self.request("POST", "/chat/completions", json=body)
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            return Completion(
                text=choice["message"]["content"] or "",
                cut=choice["finish_reason"] == "length",
                prompt_tokens=int(usage.get("prompt_tokens", 0)),
                sampled_tokens=int(usage.get("completion_tokens", 0)),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise ServiceError(f"{self._name} at {self.url} answered in no known form ({error!r})") from error
