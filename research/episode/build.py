"""A search agent as the settings describe it, for every program that runs one."""

from __future__ import annotations

from research.episode.agent import Policy, Retriever, SearchAgent
from research.episode.tokenizer import Tokenizer
from research.prompts import load_prompt
from research.settings import Settings


def build_agent(
    settings: Settings,
    policy: Policy,
    retriever: Retriever,
    tokenizer: Tokenizer,
    *,
    context_length: int | None = None,
) -> SearchAgent:
    """The agent of `[episode]`.

    Args:
        context_length: what the policy can hold, in tokens; None: `model.max_model_len`.

    Raises:
        ConfigurationError: there is no prompt of that name.
    """
    return SearchAgent(
        policy=policy,
        retriever=retriever,
        tokenizer=tokenizer,
        prompt=load_prompt(settings.episode.prompt),
        limits=settings.episode,
        context_length=context_length or settings.model.max_model_len,
    )
