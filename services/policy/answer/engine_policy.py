"""The policy of an episode that runs inside the policy server: it asks the engine directly, without HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from research.clients import finish_of, sampling_params
from research.episode.agent import Finish, Generation, Sampling
from research.errors import ServiceError
from research.forms.grammar import without_end


@dataclass(frozen=True, slots=True)
class EnginePolicy:
    """Samples turns from vLLM's engine client.

    Args:
        engine: vLLM's engine client.
        version: returns the weight version, which salts the prefix cache.
        special_tokens: of the tokenizer; `on_text` never receives the one that ends a turn.
        on_text: called with each piece of text as it is sampled; None: no streaming, which costs less.
        adapter: the LoRA adapter to sample with; None: the model alone.
    """

    engine: Any
    version: Callable[[], str]
    special_tokens: tuple[str, ...]
    on_text: Callable[[str], None] | None = None
    adapter: LoRARequest | None = None

    def with_callback(self, on_text: Callable[[str], None]) -> EnginePolicy:
        """The same policy, which calls `on_text` with each piece of text."""
        return replace(self, on_text=on_text)

    def adapted(self, adapter: LoRARequest) -> EnginePolicy:
        """The same policy, with a LoRA adapter."""
        return replace(self, adapter=adapter)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        kind = RequestOutputKind.DELTA if self.on_text else RequestOutputKind.FINAL_ONLY
        params = SamplingParams(**sampling_params(max_tokens, sampling), output_kind=kind)
        prompt = TokensPrompt(prompt_token_ids=list(prompt_ids), cache_salt=self.version())
        token_ids: list[int] = []
        logprobs: list[float] = []
        turn = None
        request = f"research-{uuid.uuid4().hex}"
        async for output in self.engine.generate(prompt, params, request, lora_request=self.adapter):
            turn = output.outputs[0]
            token_ids += turn.token_ids
            logprobs += [at[token].logprob for at, token in zip(turn.logprobs, turn.token_ids, strict=True)]
            text = turn.text
            if turn.finish_reason and finish_of(turn.finish_reason, turn.stop_reason) is Finish.EOS:
                text = without_end(text, self.special_tokens)
            if self.on_text and text:
                self.on_text(text)
        if turn is None:
            raise ServiceError("the engine ended a generation without any output")
        return Generation(
            token_ids=token_ids,
            logprobs=logprobs,
            versions=[span.version for span in turn.weight_versions for _ in range(span.start, span.end)],
            finish=finish_of(turn.finish_reason, turn.stop_reason),
        )
