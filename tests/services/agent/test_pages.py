"""The second tool on real parts: vLLM stops at `</open>`, the real retriever gives the page, and both are told."""

from __future__ import annotations

import asyncio
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


def test_what_a_search_has_found_is_opened(services: Services, data_dir: Path) -> None:
    """The untrained model follows two worked examples: it searches, and opens what it found by its id."""
    loaded = AutoTokenizer.from_pretrained(data_dir / "models" / "smollm2-135m-instruct")
    tokenizer = HuggingFaceTokenizer(loaded)
    limits = EpisodeConfig(top_k=1, max_searches=2, max_turn_tokens=48, max_passage_tokens=12)

    async def scenario() -> tuple[Episode, Recorder]:
        async with (
            PolicyClient(services.policy.url, api_key=KEY) as policy,
            RetrieverClient(services.retriever.url) as retriever,
        ):
            recorder = Recorder(policy)
            context = load_settings().model.max_model_len
            agent = SearchAgent(recorder, retriever, tokenizer, load_prompt(str(FEW_SHOT)), limits, context)
            return await agent.run(QUESTION, GREEDY), recorder

    episode, recorder = asyncio.run(scenario())
    searched, opened, *_ = episode.turns
    kinds = [step.kind for step in trace_of(episode)]
    assert kinds[:6] == ["think", "search", "result", "think", "open", "result"], episode.turns
    assert (searched.opened, opened.opened) == (False, True)
    [found], [page] = searched.passages, opened.passages
    assert (found.title, opened.query) == ("The Starry Night", found.id)
    assert (page.id, page.title, page.text) == (found.id, found.title, found.text)
    assert len(opened.result) > 2 * len(searched.result), "the page is not shown whole"
    assert page.text in opened.result
    assert not broken_promises(episode, recorder.turns, tokenizer, frozenset(tokenizer._special_ids))
