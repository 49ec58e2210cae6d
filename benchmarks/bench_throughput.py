"""An evaluation against its bound: the same tokens from bare vLLM, without strategy, search or records.

    research serve retriever &  research serve policy model.name=my-agent &
    python -m benchmarks.bench_throughput model.name=my-agent bench.per_kind=100

First `research bench` asks by each strategy; then each of its generations is asked again: the same prompt ids and just
as many tokens, in the order that a question needs them, as many questions at once. The ratio of the two times is what
is reported. Prefixes are cached by a salt of its own in each pass, so that no pass finds the other's.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from apps.bench.sets import question_sets
from apps.bench.target import Target, target_of
from research.bench.records import Records
from research.bench.run import ask_all
from research.clients import PolicyClient, sampling_params
from research.config import load_settings
from research.episode.agent import GREEDY, Generation, Policy, Sampling
from research.http.service import HttpService
from research.questions import Question
from research.schemas import StrategyName
from research.settings import Settings
from research.strategies import STRATEGIES
from research.strategies.token_chat import ChatTokenizer, TokenChat

ROUNDS = 2


@dataclass(slots=True)
class AnswerTask:
    """What a policy was asked for one question: prompt ids and how many tokens came, one after the other."""

    requests: list[tuple[list[int], int]] = field(default_factory=list)


@dataclass(slots=True)
class Recording:
    """A policy that writes down what it is asked, by the task that asks."""

    policy: Policy
    asked: dict[object, AnswerTask] = field(default_factory=dict)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        generation = await self.policy.generate(prompt_ids, max_tokens, sampling)
        mine = self.asked.setdefault(asyncio.current_task(), AnswerTask())
        mine.requests.append((list(prompt_ids), len(generation.token_ids)))
        return generation


async def evaluate(asked: Target, name: StrategyName, questions: Sequence[Question]) -> float:
    """Seconds of one evaluation, as `research bench` does it."""
    with TemporaryDirectory() as directory:
        started = time.perf_counter()
        with Records(Path(directory) / "records.jsonl", await asked.conditions(name)) as records:
            failed = await ask_all(
                asked.strategy(name),
                questions,
                records,
                sampling=GREEDY,
                concurrency=asked.settings.policy.max_num_seqs,
                version=asked.version,
            )
        assert not failed
        return time.perf_counter() - started


async def replay(vllm: HttpService, asked: Sequence[AnswerTask], concurrency: int, salt: str) -> float:
    """Seconds that vLLM's own route takes for the same tokens."""
    slots = asyncio.Semaphore(concurrency)

    async def one(question: AnswerTask) -> None:
        async with slots:
            for prompt, count in question.requests:
                params = sampling_params(count, GREEDY) | {"min_tokens": count, "ignore_eos": True, "stop": []}
                body = {"token_ids": prompt, "sampling_params": params, "cache_salt": salt}
                answer = await vllm.request("POST", "/inference/v1/generate", json=body)
                assert len(answer["choices"][0]["token_ids"]) == count

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for question in asked:
            group.create_task(one(question))
    return time.perf_counter() - started


async def main(settings: Settings) -> None:
    (questions,) = (each.questions for each in question_sets(settings))
    concurrency = settings.policy.max_num_seqs
    print(f"{len(questions)} questions, {concurrency} at once, best of {ROUNDS} rounds\n")
    print("| strategy | requests | tokens read | written | evaluation s | bare vLLM s | bare / evaluation |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    async with target_of(settings) as served:
        policy = served.agent.policy
        assert isinstance(policy, PolicyClient)
        for name in cast("tuple[StrategyName, ...]", STRATEGIES):
            passes, bounds = [], []
            for number in range(ROUNDS):
                recording = Recording(policy)
                chat = TokenChat(recording, cast(ChatTokenizer, served.agent.tokenizer), served.agent.context_length)
                asked = replace(served, agent=replace(served.agent, policy=recording), chat=chat)
                policy.weight_version = f"{name}-{number}"
                passes.append(await evaluate(asked, name, questions))
                requests = list(recording.asked.values())
                bounds.append(await replay(policy, requests, concurrency, f"bare-{name}-{number}"))
            every = [request for question in requests for request in question.requests]
            read, written = sum(len(prompt) for prompt, _ in every), sum(count for _, count in every)
            best, bound = min(passes), min(bounds)
            print(
                f"| {name} | {len(every)} | {read} | {written} | {best:.1f} | {bound:.1f} | {bound / best:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    asyncio.run(main(load_settings("quickstart-cpu", sys.argv[1:])))
