"""Token-in/token-out over the completions of any vLLM server, for ReSearch on a model that somebody else serves."""

from __future__ import annotations

from collections.abc import Sequence

from research.clients import HttpService, finish_of
from research.episode.agent import Generation, Sampling
from research.errors import ProtocolError, ServiceError


class CompletionsPolicy(HttpService):
    """A `Policy` over `POST /completions` with `return_token_ids`, which vLLM has had since 0.10.2.

    Args:
        url: of the API, with its version: `http://host:8000/v1`.
        model: the name that the endpoint knows it by; it goes for the weight version, which nobody tells.
    """

    def __init__(self, url: str, model: str, *, timeout: float, retries: int = 4, api_key: str | None = None) -> None:
        super().__init__(url, name=f"the model {model}", timeout=timeout, retries=retries, token=api_key)
        self._model = model

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        """Continue a token sequence; raises ServiceError also where the endpoint tells no token ids."""
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
        try:
            choice = answer["choices"][0]
            if (ids := choice.get("token_ids")) is None:
                raise ServiceError(
                    f"{self._name} at {self.url} tells no token ids, which ReSearch goes by; vLLM's server does. The "
                    "other strategies ask any OpenAI API"
                )
            return Generation(
                token_ids=ids,
                logprobs=choice["logprobs"]["token_logprobs"],
                versions=[self._model] * len(ids),
                finish=finish_of(choice["finish_reason"], choice.get("stop_reason")),
            )
        except (KeyError, IndexError, TypeError, AttributeError, ProtocolError) as error:
            raise ServiceError(f"{self._name} at {self.url} answered in no known form ({error!r})") from error
