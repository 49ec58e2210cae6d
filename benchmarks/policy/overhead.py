"""What the agent costs on top of its generations and searches: seconds at the client ÷ seconds inside both.

Run: python -m benchmarks.policy.overhead [--model DIR] [--questions 64]; starts a retriever and a policy of its own,
and needs `research prepare`. The model should be one that searches (an exported run); the built-in one answers at once.
Each number of clients asks the same held-out questions through `/answer` and through chat completions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from httpx_aiohttp import AiohttpTransport

from benchmarks.policy.services import policy_and_retriever

CLIENTS = (1, 32)
Ask = Callable[[httpx.AsyncClient, str], Awaitable[dict[str, Any]]]


async def ask_answer(http: httpx.AsyncClient, question: str) -> dict[str, Any]:
    """One question to `/answer`."""
    answer: dict[str, Any] = (await http.post("/answer", json={"question": question})).raise_for_status().json()
    return answer


async def ask_chat(http: httpx.AsyncClient, question: str) -> dict[str, Any]:
    """One question to the agent as a model."""
    body = {"model": "research", "messages": [{"role": "user", "content": question}]}
    answer: dict[str, Any] = (await http.post("/v1/chat/completions", json=body)).raise_for_status().json()["research"]
    return answer


async def ask_stream(http: httpx.AsyncClient, question: str) -> dict[str, Any]:
    """The same, streamed."""
    body = {"model": "research", "messages": [{"role": "user", "content": question}], "stream": True}
    answer: dict[str, Any] = {}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                answer = json.loads(line.removeprefix("data: ")).get("research") or answer
    return answer


WAYS: dict[str, Ask] = {"/answer": ask_answer, "chat": ask_chat, "chat, streamed": ask_stream}


async def measure(url: str, ask: Ask, questions: list[str], clients: int) -> dict[str, float]:
    """Ask all questions, so many at once."""
    waiting = iter(questions)
    inside = outside = searches = 0.0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal inside, outside, searches
        for question in waiting:
            begun = time.perf_counter()
            answer = await ask(http, question)
            outside += time.perf_counter() - begun
            inside += answer["seconds"]["generate"] + answer["seconds"]["search"]
            searches += answer["usage"]["searches"]

    transport = AiohttpTransport(limits=httpx.Limits(max_connections=0))
    async with httpx.AsyncClient(base_url=url, timeout=300, transport=transport) as http:
        begun = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        passed = time.perf_counter() - begun
    count = len(questions)
    return {"ratio": outside / inside, "seconds": outside / count, "rate": count / passed, "searches": searches / count}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--questions", type=int, default=64)
    arguments = parser.parse_args()
    lines = Path("data/questions/builtin-held_out.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["text"] for line in lines[: arguments.questions]]
    print("| through | clients | seconds at the client ÷ inside | seconds | answers/s | searches |")
    print("|---|---|---|---|---|---|")
    with policy_and_retriever(f"model.name={arguments.model}") as (url, _):
        asyncio.run(measure(url, ask_answer, questions[:8], 8))
        for way, ask in WAYS.items():
            for clients in CLIENTS:
                asked = questions[: max(16, len(questions) // 4)] if clients == 1 else questions
                found = asyncio.run(measure(url, ask, asked, clients))
                print(
                    f"| {way} | {clients} | {found['ratio']:.3f} | {found['seconds']:.2f} | {found['rate']:.2f} "
                    f"| {found['searches']:.2f} |"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
