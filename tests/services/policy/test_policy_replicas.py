"""`policy.replicas=2`: two real policy servers that are updated as one; one of them dies and is restarted."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoTokenizer

from research.clients import PolicyAdmin, PolicyClient
from research.config import load_settings
from research.episode.agent import Sampling
from research.episode.tokenizer import HuggingFaceTokenizer
from research.errors import ServiceError
from research.prompts import load_prompt
from services.system.launcher import running
from services.trainer.weights.publisher import Publisher
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import DiskSync
from tests.support.command import ports_in_a_row
from tests.support.fixed_weights import FixedWeights
from tests.support.tiny_model import write_thin_model

ADMIN = "admin-for-tests"


@pytest.fixture(scope="module")
def model(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = data_dir / "models" / "smollm2-135m-instruct"
    return write_thin_model(tmp_path_factory.mktemp("model") / "thin", base)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@dataclass(frozen=True)
class Servers:
    """What `research up` starts for `policy.replicas=2`, and what it says meanwhile."""

    urls: list[str]
    runs: Path
    said: io.StringIO

    def kill(self, url: str) -> None:
        """Kill the vLLM at this address, and nothing of ours."""
        port = url.rpartition(":")[2]
        children = psutil.Process().children(recursive=True)
        [supervised] = [each for each in children if f"policy.port={port}" in each.cmdline()[-2:]]
        [vllm] = supervised.children()
        vllm.kill()
        vllm.wait(120)


@pytest.fixture
def servers(
    weights: Path,
    model: Path,
    data_dir: Path,
    tmp_path: Path,
    free_port: Callable[[], int],
    service_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Servers]:
    for name, value in (service_environment | {"RESEARCH_ADMIN_TOKEN": ADMIN}).items():
        monkeypatch.setenv(name, value)
    arguments = [
        *(f"paths.data={data_dir}", f"paths.runs={tmp_path}", f"policy.weights_dir={weights}"),
        *(f"model.name={model}", "policy.replicas=2"),
        *(f"policy.port={ports_in_a_row(free_port)}", "policy.threads=1"),
        *("policy.serve=base", "policy.kv_cache_gib=1", "policy.keep_kv_cache=true"),
    ]
    settings, said = load_settings(overrides=arguments), io.StringIO()
    with running(["policy"], arguments, settings, Console(file=said)):
        yield Servers(settings.endpoints.policy_urls, tmp_path, said)


def noisy(model: Path, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    tensors = load_file(model / "model.safetensors")
    return {name: t + 0.01 * torch.randn_like(t) if t.ndim > 1 else t for name, t in tensors.items()}


async def first_logprobs(url: str, prompt: list[int], salt: str | None = None) -> list[float]:
    """Log-probabilities of the first tokens that a plain OpenAI client gets, greedily."""
    async with httpx.AsyncClient() as http:
        body = {"model": "base", "prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 0}
        models = (await http.get(f"{url}/v1/models")).json()["data"]
        body["model"] = next(each["id"] for each in models if each["id"] != "research")
        answer = await http.post(
            f"{url}/v1/completions", json=body | ({"cache_salt": salt} if salt else {}), timeout=60
        )
    logprobs: list[float] = answer.raise_for_status().json()["choices"][0]["logprobs"]["token_logprobs"]
    return logprobs


async def digests_of(urls: list[str]) -> list[dict[str, str]]:
    found = []
    for url in urls:
        async with PolicyAdmin(url, token=ADMIN) as admin:
            found.append(await admin.digests())
    return found


def test_all_serve_the_published_version_or_are_out(servers: Servers, model: Path, weights: Path) -> None:
    urls = servers.urls
    said: list[str] = []
    tokenizer = HuggingFaceTokenizer(AutoTokenizer.from_pretrained(model))
    prompt = load_prompt("research-small")
    prompts = [tokenizer.prompt_ids(prompt, f"Who wrote book {number}?") for number in range(8)]

    async def versions(replicas: Replicas) -> set[str]:
        drawn = await asyncio.gather(*(replicas.generate(ids, 8, Sampling(1.0)) for ids in prompts))
        return {version for generation in drawn for version in generation.versions}

    async def with_publisher(scenario: Callable[[Publisher, Replicas], Awaitable[None]]) -> None:
        pairs = [Replica(PolicyClient(url, retries=0), PolicyAdmin(url, token=ADMIN, retries=0)) for url in urls]
        replicas = Replicas(pairs, DiskSync(), said.append)
        try:
            await scenario(Publisher(model, weights, replicas, prompt.text), replicas)
        finally:
            await replicas.close()

    async def scenario(publisher: Publisher, replicas: Replicas) -> None:
        # What is under way goes on with what it has computed; what comes later finds nothing of it in the cache.
        before = await first_logprobs(urls[0], prompts[0])
        published, under_way = asyncio.Event(), list[list[str]]()

        async def keep_asking(ids: list[int]) -> None:
            while not published.is_set():
                under_way.append((await replicas.generate(ids, 250, Sampling(1.0))).versions)

        asked = [asyncio.create_task(keep_asking(ids)) for ids in prompts]
        await publisher.publish(FixedWeights(noisy(model, 1)), 1)
        published.set()
        await asyncio.gather(*asked)
        assert [each for each in under_way if set(each) == {"0", "1"}], under_way
        after = await first_logprobs(urls[0], prompts[0])
        assert after != before
        assert after == pytest.approx(await first_logprobs(urls[0], prompts[0], salt="never seen"), abs=0.02)
        assert await versions(replicas) == {"1"}
        for url in urls:
            async with PolicyClient(url, retries=0) as client:
                assert set((await client.generate(prompts[0], 8, Sampling(1.0))).versions) == {"1"}
        first, second = await digests_of(urls)
        assert first == second

        killed = urls[1]
        servers.kill(killed)
        await publisher.publish(FixedWeights(noisy(model, 2)), 2)
        assert f"{killed} is taken out of service" in said[-1]
        assert await versions(replicas) == {"2"}

        # It is restarted by itself, with the model that it was started with, and is given the published version before
        # it is asked.
        deadline = time.monotonic() + 600
        while "is in service again; 2 of 2 serve" not in said[-1] and time.monotonic() < deadline:
            assert await publisher.reconcile() is None
            await asyncio.sleep(0.1)
        assert "is in service again; 2 of 2 serve" in said[-1]
        assert await versions(replicas) == {"2"}
        first_name, second_name = (f"policy-{url.rpartition(':')[2]}" for url in urls)
        assert f"the {second_name} ended with code 137; it is restarted" in servers.said.getvalue()
        assert f"the {first_name} ended" not in servers.said.getvalue()
        assert {log.stem for log in (servers.runs / "logs").iterdir()} == {first_name, second_name}
        third, fourth = await digests_of(urls)
        assert third == fourth
        assert third != first

        # A version that no server can load leaves all of them with the former one.
        broken = noisy(model, 3)
        broken["model.norm.weight"] = broken["model.norm.weight"] * float("nan")
        with pytest.raises(ServiceError, match="not finite"):
            await publisher.publish(FixedWeights(broken), 3)
        assert await versions(replicas) == {"2"}
        assert await digests_of(urls) == [third, third]

    asyncio.run(with_publisher(scenario))
