"""Sampled tokens per second of rollouts, as a share of bare vLLM, and against a barrier after each turn.

Run: python -m benchmarks.trainer.rollouts [--rounds 3] [section.key=value …]; needs `research prepare`,
and a model that searches: policy.serve=PATH of a trained one, such as runs/demo/weights/version-… after `make demo`.
`rollouts` is the trainer's own code with the real retriever, each search of which takes so many ms longer. `bare` asks
vLLM for the same turns: the same prompts, as many tokens, in flight as many as they were episodes, and no search
between them. `barrier` is the rollout again, but no search begins before all turns have ended, and no turn before all
searches have. Each round measures all three; ratios are within a round, and the median of the rounds is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
from transformers import AutoTokenizer

from benchmarks.policy.services import policy_and_retriever
from benchmarks.retriever.load import free_port
from research.clients import PolicyClient, RetrieverClient
from research.config import load_settings
from research.episode.agent import Episode, Generation, Policy, Sampling
from research.episode.build import build_agent
from research.episode.tokenizer import HuggingFaceTokenizer
from research.model_paths import local_checkpoint
from research.passages import Passage
from research.questions.sampler import QuestionSampler
from research.questions.sources import load_questions
from research.settings import Settings
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.versions import Versions
from services.trainer.status import RunStatus

DELAYS_MS = (0, 50, 300)


@dataclass(slots=True)
class Barrier:
    """Lets nobody on before all who are still under way have come."""

    parties: int
    _waiting: int = 0
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        self._waiting += 1
        opening = self._open
        self._open_if_all_are_here()
        await opening.wait()

    def leave(self) -> None:
        self.parties -= 1
        self._open_if_all_are_here()

    def _open_if_all_are_here(self) -> None:
        if self._waiting >= self.parties:
            self._waiting = 0
            self._open.set()
            self._open = asyncio.Event()


@dataclass(slots=True)
class SlowRetriever:
    """The real one, and then some milliseconds more; with a barrier, nobody searches or goes on alone."""

    client: RetrieverClient
    delay: float
    barrier: Barrier | None = None

    async def search(self, query: str, top_k: int) -> list[Passage]:
        if self.barrier is not None:
            await self.barrier.wait()
        passages, _ = await asyncio.gather(self.client.search(query, top_k), asyncio.sleep(self.delay))
        if self.barrier is not None:
            await self.barrier.wait()
        return passages


@dataclass(slots=True)
class Recorder:
    """The policy, and what it was asked: each prompt, and how many tokens came."""

    policy: Policy
    turns: list[tuple[list[int], int]] = field(default_factory=list)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        generation = await self.policy.generate(prompt_ids, max_tokens, sampling)
        self.turns.append((list(prompt_ids), len(generation.token_ids)))
        return generation


@dataclass(frozen=True, slots=True)
class Setting:
    """What all measurements share."""

    settings: Settings
    tokenizer: HuggingFaceTokenizer
    client: PolicyClient
    retriever: RetrieverClient
    version: int

    async def rollout(self, delay: float, seed: int, *, barrier: bool) -> tuple[float, list[tuple[list[int], int]]]:
        """Tokens per second of a step's episodes, and the turns that they took."""
        grpo = self.settings.grpo
        wall = Barrier(grpo.questions_per_step * grpo.group_size) if barrier else None
        recorder = Recorder(self.client)
        agent = build_agent(self.settings, recorder, SlowRetriever(self.retriever, delay, wall), self.tokenizer)
        limits, status = self.settings.episode, RunStatus("benchmark", 1)

        async def all_ready() -> None:
            return None

        train = load_questions(self.settings.questions.train, "train", self.settings.paths.data)
        questions = QuestionSampler(train, self.settings.questions.mix, seed).draw(grpo.questions_per_step)
        with tempfile.TemporaryDirectory() as directory:
            rollouts = Rollouts(
                agent,
                Sampling(limits.temperature, limits.top_p),
                ServiceGate(all_ready, 60.0, status),
                0,
                Versions(lambda: self.version),
                EpisodeJournal(Path(directory)),
                seed=seed,
            )
            self.client.weight_version = uuid.uuid4().hex  # the salt: nothing is cached from the measurement before
            started = time.perf_counter()
            groups = await rollouts.groups(1, questions, grpo.group_size, wall.leave if wall else _nothing)
            seconds = time.perf_counter() - started
        episodes = [member.episode for group in groups for member in group.members]
        assert len(episodes) == grpo.questions_per_step * grpo.group_size
        return _sampled(episodes) / seconds, recorder.turns

    async def bare(self, turns: Sequence[tuple[list[int], int]], at_once: int) -> float:
        """Tokens per second of vLLM alone, on the same turns."""
        slots, salt = asyncio.Semaphore(at_once), uuid.uuid4().hex
        async with httpx.AsyncClient(base_url=self.client.url, timeout=600, limits=httpx.Limits()) as http:

            async def turn(number: int, prompt: list[int], tokens: int) -> None:
                parameters = {
                    "max_tokens": tokens,
                    "ignore_eos": True,
                    "temperature": 1.0,
                    "seed": number,
                    "logprobs": 0,
                }
                body = {"token_ids": prompt, "sampling_params": parameters, "cache_salt": salt}
                async with slots:
                    answer = (await http.post("/inference/v1/generate", json=body)).raise_for_status().json()
                assert len(answer["choices"][0]["token_ids"]) == tokens

            started = time.perf_counter()
            await asyncio.gather(*(turn(number, *each) for number, each in enumerate(turns)))
        return sum(tokens for _, tokens in turns) / (time.perf_counter() - started)


def _nothing() -> None:
    """No barrier to leave."""


def _sampled(episodes: Sequence[Episode]) -> int:
    return sum(episode.sampled_tokens for episode in episodes)


async def measure(settings: Settings, rounds: int) -> None:
    """Print a row per delay."""
    checkpoint = local_checkpoint(settings.model.name, settings.paths.data)
    tokenizer = HuggingFaceTokenizer(AutoTokenizer.from_pretrained(checkpoint))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(PolicyClient(settings.endpoints.policy_urls[0], timeout=600))
        retriever = await stack.enter_async_context(RetrieverClient(settings.endpoints.retriever_url))
        [version] = (await client.generate(tokenizer.encode("Once"), 1, Sampling())).versions
        setting = Setting(settings, tokenizer, client, retriever, int(version))
        episodes = settings.grpo.questions_per_step * settings.grpo.group_size
        await setting.rollout(0.0, 99, barrier=False)  # caches fill, threads begin
        print("| search takes | turns | rollouts, tokens/s | of bare vLLM | of a barrier per turn |")
        print("|---|---|---|---|---|")
        for delay in DELAYS_MS:
            rates, of_bare, of_barrier, counts = [], [], [], []
            for seed in range(rounds):
                rate, turns = await setting.rollout(delay / 1000, seed, barrier=False)
                bare = await setting.bare(turns, episodes)
                with_barrier, _ = await setting.rollout(delay / 1000, seed, barrier=True)
                rates.append(rate)
                of_bare.append(rate / bare)
                of_barrier.append(rate / with_barrier)
                counts.append(len(turns))
            row = (f"+ {delay} ms", f"{median(counts):.0f}", f"{median(rates):.0f}", f"{median(of_bare):.2f}")
            print(f"| {' | '.join(row)} | {median(of_barrier):.2f} |", flush=True)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="settings, such as policy.serve=PATH or grpo.questions_per_step=8")
    arguments = parser.parse_args()
    os.environ.pop("RESEARCH_API_KEY", None)
    port = free_port()
    with policy_and_retriever(*arguments.overrides, retriever_port=port) as (url, _):
        places = [f'endpoints.policy_urls=["{url}"]', f"endpoints.retriever_url=http://127.0.0.1:{port}"]
        settings = load_settings(overrides=[*arguments.overrides, *places])
        asyncio.run(measure(settings, arguments.rounds))


if __name__ == "__main__":
    main()
