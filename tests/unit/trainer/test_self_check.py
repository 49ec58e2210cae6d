"""The comparison of sampler and learner is one of the same weights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from research.episode.agent import Generation, Sampling, SearchAgent
from research.errors import ServiceError, TrainingError
from research.prompts import Prompt
from research.questions import Question
from research.settings import EpisodeConfig
from services.trainer.rollout.self_check import compare, probe
from tests.support.characters import CharacterTokenizer, Script, Shelf

QUESTIONS = [Question(str(number), f"question {number}", ("Paris",)) for number in range(3)]


class Serving:
    """Serves a version of the weights."""

    def __init__(self, version: str) -> None:
        self.version = version

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        said = await Script(["<think>"]).generate(prompt_ids, max_tokens, sampling)
        return replace(said, versions=[self.version] * len(said.token_ids))


def agent(version: str) -> SearchAgent:
    limits = EpisodeConfig(max_tokens=3000)
    return SearchAgent(Serving(version), Shelf([]), CharacterTokenizer(), Prompt("none", ""), limits, 4000)


def test_tokens_of_the_published_weights_are_compared() -> None:
    own = agent("7")
    sequences = asyncio.run(probe(own, QUESTIONS, Sampling(), "7"))
    assert len(sequences) == 3
    same = [sequence.sampler_logprobs for sequence in sequences]
    assert compare(own, sequences, same, 0.1) == 0
    with pytest.raises(TrainingError, match=r"1\.000 nats per token apart"):
        compare(own, sequences, [[each - 1 for each in logprobs] for logprobs in same], 0.1)


def test_a_server_that_was_restarted_in_between_is_no_mismatch() -> None:
    """It would be told as a fault of the model; a ServiceError is tried again, after new weights were sent."""
    with pytest.raises(ServiceError, match="the policy serves weight version 0 instead of 7"):
        asyncio.run(probe(agent("0"), QUESTIONS, Sampling(), "7"))
