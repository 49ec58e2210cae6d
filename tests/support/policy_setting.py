"""A real policy server of the built-in model, behind both secrets, and those who ask it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from research.clients import PolicyAdmin, PolicyClient
from research.episode.agent import GREEDY, Generation, Sampling
from research.episode.tokenizer import HuggingFaceTokenizer
from research.prompts import load_prompt
from research.schemas import WeightsRequest
from tests.conftest import Server

KEY, ADMIN = "key-for-tests", "admin-for-tests"
SECRETS = {"RESEARCH_API_KEY": KEY, "RESEARCH_ADMIN_TOKEN": ADMIN}
QUESTION = "Who painted The Starry Night?"


@dataclass
class Setting:
    """One policy server and everything that asks it."""

    server: Server
    runs: Path
    tokenizer: HuggingFaceTokenizer
    prompt_ids: list[int]

    def client(self) -> PolicyClient:
        return PolicyClient(self.server.url, api_key=KEY)

    def admin(self) -> PolicyAdmin:
        return PolicyAdmin(self.server.url, token=ADMIN, retries=0)

    def generate(
        self, tokens: int = 24, prompt: list[int] | None = None, version: str = "0", sampling: Sampling = GREEDY
    ) -> Generation:
        async def run() -> Generation:
            async with self.client() as client:
                client.weight_version = version
                return await client.generate(prompt or self.prompt_ids, tokens, sampling)

        return asyncio.run(run())

    def digests(self) -> dict[str, str]:
        async def run() -> dict[str, str]:
            async with self.admin() as admin:
                return await admin.digests()

        return asyncio.run(run())

    def update(self, path: Path | str, version: str) -> Any:
        async def run() -> Any:
            async with self.admin() as admin:
                return await admin.update_weights(WeightsRequest(path=str(path), version=version))

        return asyncio.run(run())


def open_setting(launch: Any, runs: Path, model: Path, *overrides: str) -> Setting:
    server = launch(
        "policy",
        f"policy.weights_dir={runs}",
        "endpoints.retriever_url=http://127.0.0.1:9",  # nothing listens there
        "episode.search_timeout=2",
        "episode.retries=1",
        *overrides,
        timeout=300,
        environment=SECRETS,
    )
    tokenizer = HuggingFaceTokenizer(AutoTokenizer.from_pretrained(model))
    return Setting(server, runs, tokenizer, tokenizer.prompt_ids(load_prompt("research-small"), QUESTION))
