"""The second tool on real parts: vLLM stops at `</open>`, the real retriever gives the page, and both are told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.injection.promises import Recorder, broken_promises
from research.clients import PolicyClient, RetrieverClient
from research.config import load_settings
from research.episode.agent import GREEDY, Episode, SearchAgent
from research.episode.tokenizer import HuggingFaceTokenizer
from research.episode.trace import trace_of
from research.prompts import load_prompt
from research.settings import EpisodeConfig
from tests.support.agent_services import KEY, QUESTION, Services

FEW_SHOT = Path(__file__).parents[2] / "support" / "few_shot_open.txt"
QUESTIONS = [QUESTION, *(f"What is the capital of {country}?" for country in ("Italy", "Spain", "Norway", "Poland"))]


def test_what_a_search_has_found_is_opened(services: Services, data_dir: Path) -> None:
    """The untrained model follows two worked examples: it searches, and opens what it found, or another id."""
    loaded = AutoTokenizer.from_pretrained(data_dir / "models" / "smollm2-135m-instruct")
    tokenizer, context = HuggingFaceTokenizer(loaded), load_settings().model.max_model_len
    limits = EpisodeConfig(top_k=1, max_searches=2, max_turn_tokens=48, max_passage_tokens=4)

    async def scenario() -> list[tuple[Episode, Recorder]]:
        async with (
            PolicyClient(services.policy.url, api_key=KEY) as policy,
            RetrieverClient(services.retriever.url) as retriever,
        ):
            agent = SearchAgent(policy, retriever, tokenizer, load_prompt(str(FEW_SHOT)), limits, context)

            async def ask(question: str) -> tuple[Episode, Recorder]:
                recorder = Recorder(policy)
                return await replace(agent, policy=recorder).run(question, GREEDY), recorder

            return await asyncio.gather(*map(ask, QUESTIONS))

    known = 0
    for episode, recorder in asyncio.run(scenario()):
        assert not broken_promises(episode, recorder.turns, tokenizer, frozenset(tokenizer._special_ids))
        kinds = [step.kind for step in trace_of(episode)]
        assert kinds[:6] == ["think", "search", "result", "think", "open", "result"], episode.turns
        searched, opened, *_ = episode.turns
        assert (searched.opened, opened.opened) == (False, True)
        [found] = searched.passages
        if opened.query == found.id:
            assert opened.passages == [found], "the page is not shown whole"
            assert found.text in opened.result
            assert found.text not in searched.result
            known += 1
    assert known, "of no question was the passage opened that was found"
