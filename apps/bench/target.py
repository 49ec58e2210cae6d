"""What is asked: the policy service or any OpenAI endpoint, with a retriever; and what its answers depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from transformers import AutoTokenizer

from research.clients import PolicyClient, RetrieverClient
from research.episode.agent import SearchAgent
from research.episode.build import build_agent
from research.episode.tokenizer import HuggingFaceTokenizer
from research.errors import ConfigurationError
from research.model_paths import local_checkpoint
from research.prompts import Prompt, check_prompt, load_prompt, trained_prompt
from research.schemas import PolicyInfo
from research.settings import Settings
from research.strategies import BASELINES, MAX_COMPLETION_TOKENS, RESEARCH, BaselineStrategy, ReSearchStrategy, Strategy
from research.strategies.chat import ChatModel
from research.strategies.completions import CompletionsPolicy
from research.strategies.openai_chat import OpenAIChat
from research.strategies.prompt_hash import prompt_hash
from research.strategies.token_chat import TokenChat
from services.web.auth import API_KEY_VARIABLE, environment_secret

ENDPOINT_KEY_VARIABLE = "RESEARCH_ENDPOINT_API_KEY"

_GREEDY = "greedy"
_LIMITS = ("top_k", "max_searches", "max_tokens", "max_turn_tokens", "max_passage_tokens")


@dataclass(frozen=True, slots=True)
class Target:
    """`served` holds what answers depend on, as the services report it; `version` is the weight version, if known."""

    settings: Settings
    agent: SearchAgent
    chat: ChatModel
    retriever: RetrieverClient
    served: Mapping[str, Any]
    version: str | None

    def strategy(self, name: str) -> Strategy:
        """One of `STRATEGIES`, ready to be asked."""
        if name == RESEARCH:
            return ReSearchStrategy(self.agent)
        return BaselineStrategy.named(name, self.chat, self.retriever, self.settings.episode)

    async def conditions(self, name: str) -> dict[str, Any]:
        """What an answer with this strategy depends on, except the questions."""
        prompt = self.agent.prompt.sha256 if name == RESEARCH else await prompt_hash(BASELINES[name])
        pages = ("max_page_tokens",) if self.agent.prompt.form.can_open else ()
        limits = {each: getattr(self.settings.episode, each) for each in (*_LIMITS, *pages)}
        limits["max_written"] = MAX_COMPLETION_TOKENS
        return {"strategy": name, "prompt": prompt, "limits": limits, **self.served}


@asynccontextmanager
async def target_of(settings: Settings) -> AsyncIterator[Target]:
    """Connect to what the settings name.

    Raises:
        ServiceError: a service does not answer, or is not ready.
        ConfigurationError: another model is served, or the checkpoint was trained with another prompt.
        AssetError: the model's tokenizer is not on this disk.
    """
    limits = settings.episode
    async with AsyncExitStack() as opened:
        retriever = await opened.enter_async_context(
            RetrieverClient(settings.endpoints.retriever_url, timeout=limits.search_timeout, retries=limits.retries)
        )
        await retriever.check_ready()
        index = await _index_of(retriever)
        retriever.revision = index["index_revision"]
        connect = _endpoint if settings.bench.endpoint else _policy_service
        yield await connect(settings, retriever, index, opened)


async def _policy_service(
    settings: Settings, retriever: RetrieverClient, index: dict[str, Any], opened: AsyncExitStack
) -> Target:
    limits, key = settings.episode, environment_secret(API_KEY_VARIABLE)
    policy = await opened.enter_async_context(
        PolicyClient(
            settings.endpoints.policy_urls[0], timeout=limits.request_timeout, retries=limits.retries, api_key=key
        )
    )
    await policy.check_ready()
    info = await policy.request_as(TypeAdapter(PolicyInfo), "GET", "/info")
    policy.weight_version = info.weight_version
    check_prompt(
        load_prompt(limits.prompt), info.trained_prompt, info.model, allow_mismatch=limits.allow_prompt_mismatch
    )
    _require_same_model(settings.model.name, info.model, policy.url)
    words = _tokenizer(settings)
    served = {
        "model": info.model,
        "weight_version": info.weight_version,
        "weights": info.weights,
        "dtype": info.dtype,
        "context": info.context_length,
        "sampling": _GREEDY,
    }
    agent = build_agent(settings, policy, retriever, words, context_length=info.context_length)
    chat = TokenChat(policy, words, info.context_length)
    return Target(settings, agent, chat, retriever, {**served, **index}, info.weight_version)


async def _endpoint(
    settings: Settings, retriever: RetrieverClient, index: dict[str, Any], opened: AsyncExitStack
) -> Target:
    bench, limits, key = settings.bench, settings.episode, environment_secret(ENDPOINT_KEY_VARIABLE)
    how: dict[str, Any] = {"timeout": limits.request_timeout, "retries": limits.retries, "api_key": key}
    chat = await opened.enter_async_context(OpenAIChat(bench.endpoint, bench.model, **how))
    policy = await opened.enter_async_context(CompletionsPolicy(bench.endpoint, bench.model, **how))
    checkpoint = local_checkpoint(settings.model.name, settings.paths.data)
    prompt = load_prompt(limits.prompt)
    check_prompt(prompt, trained_prompt(checkpoint), settings.model.name, allow_mismatch=limits.allow_prompt_mismatch)
    context, words = settings.model.max_model_len, _tokenizer(settings)
    await chat.probe_capabilities()
    served = {
        "model": bench.model,
        "endpoint": bench.endpoint,
        "context": context,
        "tokenizer": f"{settings.model.name} {_fingerprint(words, prompt)}",
        "sampling": _GREEDY if chat.takes_temperature else "as the endpoint does, which takes no temperature",
    }
    agent = build_agent(settings, policy, retriever, words)
    return Target(settings, agent, chat, retriever, {**served, **index}, None)


def _require_same_model(named: str, served: str, url: str) -> None:
    """Refuse to measure a model other than the one in the settings, such as a server that still runs from before."""
    if named != served and Path(named).expanduser().resolve() != Path(served).expanduser().resolve():
        raise ConfigurationError(
            f"model.name: the policy at {url} serves {served}, and not {named}; set model.name={served}, or serve "
            f"{named}"
        )


def _tokenizer(settings: Settings) -> HuggingFaceTokenizer:
    checkpoint = local_checkpoint(settings.model.name, settings.paths.data)
    return HuggingFaceTokenizer(AutoTokenizer.from_pretrained(checkpoint))


def _fingerprint(words: HuggingFaceTokenizer, prompt: Prompt) -> str:
    """Changes with the tokenizer and with its chat template, where the prompt has tools also with how it tells them."""
    asked = words.chat_ids([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who? 北京, 1889"}])
    if prompt.form.chat.tools:
        asked += words.prompt_ids(prompt, "Who?")
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


async def _index_of(retriever: RetrieverClient) -> dict[str, Any]:
    found, index = await retriever.served()
    return {
        "encoder": f"{found.encoder} ({found.backend})",
        "index": index.name,
        "index_revision": index.revision,
        "index_structure": f"{index.structure}{' and words' if index.lexical else ''}",
    }
