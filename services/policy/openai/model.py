"""The search agent as one more model of vLLM's OpenAI server: `POST /v1/chat/completions` with its name.

vLLM's own route stays in place, with its checks, its cancellation and its server-sent events; only the object that
serves chats is wrapped.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList

from research.episode.agent import Sampling
from research.errors import ConfigurationError, ResearchError
from research.schemas import AgentLimits
from services.policy.answer.service import AnswerService, AnswerTask, prefetch_first
from services.policy.openai.conversation import question_of
from services.policy.openai.errors import OpenAIHttpError
from services.policy.openai.format import AGENT, adapter_of, agent_named, response_of
from services.policy.openai.stream import AnswerStream


class ModelsWithAgent:
    """vLLM's list of models, plus the agent, alone and with each adapter."""

    def __init__(self, inner: Any, context_length: int) -> None:
        self._inner = inner
        self._context_length = context_length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def show_available_models(self) -> ModelList:
        listed: ModelList = await self._inner.show_available_models()
        served = listed.data[0]
        agents = [
            ModelCard(id=agent_named(adapter), root=served.root, parent=served.id, max_model_len=self._context_length)
            for adapter in (None, *self._inner.lora_requests)
        ]
        return ModelList(data=[*listed.data, *agents])


class ChatWithAgent:
    """vLLM's chat completions; requests that name the agent go to the agent."""

    def __init__(self, inner: Any, answering: AnswerService) -> None:
        self._inner = inner
        self._answer_service = answering

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def create_chat_completion(self, request: ChatCompletionRequest, raw_request: Any = None) -> Any:
        """As vLLM's method.

        Raises:
            OpenAIHttpError: the agent cannot answer this request.
        """
        if not self._is_agent(request.model):
            return await self._inner.create_chat_completion(request, raw_request)
        try:
            asked = _parse_chat_request(request)
            if request.stream:
                options = request.stream_options
                stream = AnswerStream(request.model, with_usage=bool(options and options.include_usage))
                return stream.chunks(await prefetch_first(self._answer_service.stream(asked)))
            return response_of(await self._answer_service.answer(asked))
        except ResearchError as error:
            raise OpenAIHttpError(error) from error

    def _is_agent(self, model: str | None) -> bool:
        """Whether a name is the agent's; vLLM refuses the name of an adapter that is not loaded as unknown."""
        return model in {agent_named(adapter) for adapter in (None, *self._inner.models.lora_requests)}


# What would shape what the model writes, which the agent's own grammar does.
_UNSUPPORTED = ("structured_outputs", "stop_token_ids", "logit_bias", "allowed_token_ids", "bad_words", "min_tokens")


def _parse_chat_request(request: ChatCompletionRequest) -> AnswerTask:
    """Parse an OpenAI request to the agent; ConfigurationError names a field that the agent does not support."""
    extra = request.model_extra or {}
    for field, wanted in (
        *((name, bool(getattr(request, name, None) or extra.get(name))) for name in _UNSUPPORTED),
        ("n", request.n not in (None, 1)),
        ("logprobs", bool(request.logprobs)),
        ("tools", bool(request.tools)),
        ("stop", bool(request.stop)),
        ("response_format", request.response_format is not None and request.response_format.type != "text"),
    ):
        if wanted:
            raise ConfigurationError(f"{field}: the agent {AGENT!r} does not support it; ask the raw model instead")
    if not 0 <= (request.temperature or 0.0) <= 2:
        raise ConfigurationError(f"temperature: {request.temperature:g} is not between 0 and 2")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise ConfigurationError(f"top_p: {request.top_p:g} must be above 0 and at most 1")
    sampling = Sampling(request.temperature or 0.0, 1.0 if request.top_p is None else request.top_p, request.seed)
    return AnswerTask(question_of(request.messages), sampling, _limits(request), adapter=adapter_of(request.model))


def _limits(request: ChatCompletionRequest) -> AgentLimits:
    """OpenAI's token limit, and the limits in the extra field `research`."""
    given = (request.model_extra or {}).get("research", {})
    most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    try:
        return AgentLimits.model_validate({"max_tokens": most, **given} if isinstance(given, dict) else given)
    except ValidationError as error:
        faults = [".".join(map(str, ("research", *fault["loc"]))) + f": {fault['msg']}" for fault in error.errors()]
        raise ConfigurationError("; ".join(faults)) from error
