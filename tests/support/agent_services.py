"""What the tests of the agent share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from tests.conftest import Server

KEY = "key-for-tests"
ADMIN_TOKEN = "admin-for-tests"
QUESTION = "Who painted The Starry Night?"
AGENT, RAW = "research", "policy"


@dataclass
class Services:
    """A policy, the retriever that it searches, and where it expects a trainer, which a test may start."""

    policy: Server
    retriever: Server
    trainer_port: int

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.policy.url, timeout=120, headers={"Authorization": f"Bearer {KEY}"})

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.policy.url}/v1", api_key=KEY, timeout=120, **options)

    def metric(self, name: str) -> float:
        """A metric, summed over its labels."""
        with self.http() as http:
            lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and line[len(name)] in " {")


def user(text: str = QUESTION) -> list[Any]:
    """A chat of one message."""
    return [{"role": "user", "content": text}]


def ask(client: openai.OpenAI, **more: Any) -> Any:
    """Ask the agent."""
    return client.chat.completions.create(model=AGENT, messages=more.pop("messages", user()), **more)


def await_condition(what: str, condition: Callable[[], bool], seconds: float = 120) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
