"""Token-in/token-out over the completions of any vLLM server, for ReSearch on a model served elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NotRequired

from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from research.clients import finish_of
from research.episode.agent import Generation, Sampling
from research.errors import ServiceError
from research.http.service import HttpService


# Of an answer, only what is read of it.
class _Logprobs(TypedDict):
    token_logprobs: list[FiniteFloat]


class _Choice(TypedDict):
    token_ids: NotRequired[list[Annotated[int, Field(ge=0, lt=2**31)]] | None]
    logprobs: NotRequired[_Logprobs | None]
    finish_reason: NotRequired[str | None]
    stop_reason: NotRequired[str | int | None]


class _Completions(TypedDict):
    choices: Annotated[list[_Choice], Field(min_length=1)]


_COMPLETIONS = TypeAdapter(_Completions)


class CompletionsPolicy(HttpService):
    """A `Policy` over `POST /completions` with `return_token_ids`, which vLLM has had since 0.10.2.

    Args:
        url: of the API, with its version: `http://host:8000/v1`.
        model: the endpoint's name for it; it stands for the weight version, which the endpoint does not report.
    """

    kind = "model"

    def __init__(self, url: str, model: str, *, timeout: float, retries: int = 4, api_key: str | None = None) -> None:
        super().__init__(url, name=f"the model {model}", timeout=timeout, retries=retries, token=api_key)
        self._model = model

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        """Continue a token sequence; also raises ServiceError if the endpoint returns no token ids."""
        body = {
            "model": self._model,
            "prompt": list(prompt_ids),
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "logprobs": 0,
        }
        answer = await self.request("POST", "/completions", json=body)
        choice = self.as_form(_COMPLETIONS, answer)["choices"][0]
        if (ids := choice.get("token_ids")) is None:
            raise ServiceError(
                f"{self._name} at {self.url} returns no token ids, which ReSearch needs; use vLLM's server, or "
                "another strategy, which works with any OpenAI API"
            )
        told = choice.get("logprobs")
        logprobs = told["token_logprobs"] if told else []
        if len(logprobs) != len(ids) or len(ids) > max_tokens:
            raise self.nonsense("more tokens than were asked for, or another number of log-probabilities")
        return Generation(
            token_ids=ids,
            logprobs=logprobs,
            versions=[self._model] * len(ids),
            finish=finish_of(choice.get("finish_reason"), choice.get("stop_reason")),
        )
