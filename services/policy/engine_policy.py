"""The policy of an episode that runs inside the policy server: it asks the engine directly, without HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

from research.clients import finish_of, sampling_params
from research.episode import Generation, Sampling
from research.errors import ServiceError


class EnginePolicy:
    """Samples turns from vLLM's engine client; `version` tells the weight version that salts the prefix cache."""

    def __init__(self, engine: Any, version: Callable[[], str]) -> None:
        self._engine = engine
        self._version = version

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        params = SamplingParams(**sampling_params(max_tokens, sampling), output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = TokensPrompt(prompt_token_ids=list(prompt_ids), cache_salt=self._version())
        final = None
        async for output in self._engine.generate(prompt, params, f"research-{uuid.uuid4().hex}"):
            final = output
        if final is None:
            raise ServiceError("the engine ended a generation without any output")
        turn = final.outputs[0]
        return Generation(
            token_ids=list(turn.token_ids),
            logprobs=[at[token].logprob for at, token in zip(turn.logprobs, turn.token_ids, strict=True)],
            versions=[span.version for span in turn.weight_versions for _ in range(span.start, span.end)],
            finish=finish_of(turn.finish_reason, turn.stop_reason),
        )
