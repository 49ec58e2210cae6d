"""The real policy server: vLLM with our plugin, its weights exchanged while it serves.

The tests run in order and share one server; the last ones compare with a second server that is started afresh on the
checkpoint that the first one was given.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from research.config import load_settings
from research.episode.agent import GREEDY, Finish, Generation, Sampling
from research.prompts import load_prompt
from research.schemas import WeightsRequest
from research.settings import Settings
from services.trainer.learner.learner import Learner
from services.trainer.model.batching import TrainingSequence
from tests.conftest import server_end
from tests.support.policy_setting import ADMIN, KEY, QUESTION, Setting, open_setting


@pytest.fixture(scope="module")
def model(data_dir: Path) -> Path:
    return data_dir / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def policy(launch: Any, runs: Path, model: Path) -> Setting:
    return open_setting(launch, runs, model)


@pytest.fixture(scope="module")
def perturbed(runs: Path, model: Path) -> Path:
    """A checkpoint in which every matrix, the tied embeddings too, differs from the served one."""
    target = runs / "perturbed"
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    torch.manual_seed(0)
    noisy = {name: t + 0.01 * torch.randn_like(t) if t.ndim > 1 else t for name, t in tensors.items()}
    save_file(noisy, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture
def http(policy: Setting) -> Iterator[httpx.Client]:
    with policy.server.client() as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        client.timeout = httpx.Timeout(120)
        yield client


def test_a_plain_openai_client_talks_to_the_raw_model(policy: Setting) -> None:
    from openai import AuthenticationError, OpenAI

    client = OpenAI(base_url=f"{policy.server.url}/v1", api_key=KEY)
    assert [served.id for served in client.models.list()] == ["policy", "research"]
    chat = client.chat.completions.create(
        model="policy", messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
    )
    assert chat.choices[0].message.content
    with pytest.raises(AuthenticationError):
        OpenAI(base_url=f"{policy.server.url}/v1", api_key="wrong").models.list()


def test_answer_has_the_documented_shape(http: httpx.Client) -> None:
    answer = http.post("/answer", json={"question": QUESTION, "max_tokens": 40}).raise_for_status().json()
    assert answer["question"] == QUESTION
    assert answer["usage"]["sampled_tokens"] > 0
    assert answer["weight_versions"] == ["0"]
    assert answer["stop_reason"] in {"answered", "token_limit", "search_limit", "malformed_search"}
    assert answer["seconds"]["total"] >= answer["seconds"]["generate"] > 0
    described = http.get("/openapi.json").json()["paths"]["/answer"]["post"]["responses"]
    assert {"200", "401", "422", "429", "503"} <= described.keys()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"question": ""}, "question"),
        ({"question": "   "}, "question"),
        ({}, "give either `question` or `questions`"),
        ({"question": 7}, "question"),
        ({"question": "x" * 1_000_000}, "policy.max_question_chars"),
        ({"question": "x y " * 2000}, "leaves no room"),
        ({"question": "ok", "top_k": 0}, "top_k"),
        ({"question": "ok", "max_searches": -1}, "max_searches"),
        ({"question": "ok", "temperature": 3}, "temperature"),
        ({"question": "ok", "nonsense": 1}, "nonsense: there is no such field"),
    ],
)
def test_wrong_questions_get_a_clear_422(http: httpx.Client, body: dict[str, Any], named: str) -> None:
    response = http.post("/answer", json=body)
    assert response.status_code == 422, response.text
    assert named in response.json()["message"]


def test_a_body_that_is_no_json_or_too_large_is_refused(http: httpx.Client) -> None:
    broken = http.post("/answer", content=b"{", headers={"Content-Type": "application/json"})
    assert (broken.status_code, broken.json()["error"]) == (422, "invalid_request")
    assert http.post("/answer", json={"question": "x" * 20_000_000}).status_code == 413


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/answer"), ("GET", "/v1/models"), ("POST", "/inference/v1/generate")]
)
def test_inference_needs_the_key(policy: Setting, method: str, path: str) -> None:
    with policy.server.client() as client:
        assert client.request(method, path, json={"question": QUESTION}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/weights"),
        ("GET", "/admin/weights"),
        ("GET", "/admin/weights/digests"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("GET", "/weight_info"),
    ],
)
@pytest.mark.parametrize("token", [None, KEY, "wrong"])
def test_weight_routes_need_the_admin_token(policy: Setting, method: str, path: str, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with policy.server.client() as client:
        answer = client.request(method, path, json={"path": "x", "version": "1"}, headers=headers)
    assert answer.status_code == 401
    assert "RESEARCH_ADMIN_TOKEN" in answer.json()["message"]


@pytest.mark.parametrize(
    "path",
    ["/collective_rpc", "/sleep", "/reset_prefix_cache", "/update_weights", "/start_weight_update", "/weight_checker"],
)
def test_routes_of_the_development_mode_do_not_exist(policy: Setting, path: str) -> None:
    with policy.server.client() as client:
        assert client.post(path, headers={"Authorization": f"Bearer {ADMIN}"}, json={}).status_code == 404


@pytest.mark.parametrize("path", ["/scale_elastic_ep", "/is_scaling_elastic_ep", "/generative_scoring", "/invocations"])
def test_routes_that_no_token_would_guard_are_closed(policy: Setting, path: str) -> None:
    body = {"model": "policy", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    with policy.server.client() as client:
        answers = [client.post(url, json=body).status_code for url in (path, f"{path}/", f"{path}%0A")]
    assert answers == [404, 404, 404]


def test_every_route_that_takes_orders_or_infers_asks_for_a_token(policy: Setting) -> None:
    harmless = {"/ping"}
    with policy.server.client() as client:
        described = client.get("/openapi.json").json()["paths"]
        posts = {path for path, methods in described.items() if "post" in methods} - harmless
        statuses = {path: client.post(path.replace("{response_id}", "x"), json={}).status_code for path in posts}
        newline = {path: client.post(path.replace("{response_id}", "x") + "%0A", json={}).status_code for path in posts}
    assert posts
    assert {path: status for path, status in statuses.items() if status not in (401, 404)} == {}
    assert set(newline.values()) == {404}, newline


def test_learner_and_sampler_agree_on_log_probabilities(policy: Setting, model: Path, tmp_path: Path) -> None:
    async def sample() -> list[Generation]:
        async with policy.client() as client:
            draws = (client.generate(policy.prompt_ids, 60, Sampling(1.0, seed=seed)) for seed in range(8))
            return await asyncio.gather(*draws)

    generations = asyncio.run(sample())
    start = len(policy.prompt_ids)
    sequences = [
        TrainingSequence(policy.prompt_ids + g.token_ids, list(range(start, start + len(g.token_ids))), g.logprobs)
        for g in generations
    ]
    settings: Settings = load_settings(overrides=[f"paths.runs={tmp_path}"])
    learnt = Learner(settings, model).logprobs(sequences)
    differences = [
        mine - theirs
        for s, row in zip(sequences, learnt, strict=True)
        for mine, theirs in zip(row, s.sampler_logprobs, strict=True)
    ]
    mean = sum(map(abs, differences)) / len(differences)
    kl = sum(math.exp(d) - d - 1 for d in differences) / len(differences)
    print(f"{len(differences)} tokens: mean {mean:.4f}, max {max(map(abs, differences)):.4f}, mismatch KL {kl:.6f}")
    assert mean < 0.05
    assert kl < 0.01


def test_a_turn_stops_at_the_end_of_a_search_and_keeps_what_was_sampled(policy: Setting) -> None:
    pattern = "".join(f"<search>{word}</search>\n" for word in ("red", "green", "blue", "black", "white"))
    generation = policy.generate(30, policy.tokenizer.encode(f"{pattern}<search>yellow"))
    assert generation.finish is Finish.SEARCH
    assert "</search>" in policy.tokenizer.decode(generation.token_ids)
    cut = policy.generate(1, policy.tokenizer.encode(f"{pattern}<search>yellow"))
    assert cut.finish is Finish.LENGTH
    assert set(generation.versions) == {"0"}
    # A prompt form whose messages only the model ends, such as that of tool calls.
    unstopped = policy.generate(
        30, policy.tokenizer.encode(f"{pattern}<search>yellow"), sampling=replace(GREEDY, stop=())
    )
    assert unstopped.finish is Finish.LENGTH
    assert unstopped.token_ids[: len(generation.token_ids)] == generation.token_ids


def test_a_turn_that_is_cut_returns_what_was_sampled(policy: Setting) -> None:
    counting = policy.tokenizer.encode(", ".join(str(number) for number in range(1, 30)) + ",")

    async def cut() -> Generation:
        async with policy.client() as client, httpx.AsyncClient(base_url=policy.server.url) as watcher:
            start = _sampled_tokens((await watcher.get("/metrics")).text)
            asked = asyncio.create_task(client.generate(counting, 800, Sampling(0.0)))
            # Each look is a round trip, so this loop is no busy wait.
            while _sampled_tokens((await watcher.get("/metrics")).text) == start and not asked.done():
                pass
            await client.cut()
            return await asked

    generation = asyncio.run(cut())
    assert generation.finish is Finish.TIME
    assert 0 < len(generation.token_ids) < 800
    assert set(generation.versions) == {"0"}
    assert generation.token_ids == policy.generate(len(generation.token_ids), counting).token_ids


def test_requests_with_a_seed_are_served_however_many_come_at_once(policy: Setting) -> None:
    """vLLM 0.32 on a CPU died of these: together they are more tokens than one prefill takes (2,048)."""
    prompts = [policy.prompt_ids + policy.tokenizer.encode(f"Number {n}. " * 60) for n in range(24)]
    assert sum(map(len, prompts)) > 3 * 2048

    async def run() -> list[Generation]:
        async with policy.client() as client:
            drawn = [client.generate(prompt, 8, Sampling(1.0, seed=n)) for n, prompt in enumerate(prompts)]
            return await asyncio.gather(*drawn)

    assert [len(generation.token_ids) > 0 for generation in asyncio.run(run())] == [True] * 24

    async def twice() -> list[Generation]:
        async with policy.client() as client:
            return [await client.generate(policy.prompt_ids, 16, Sampling(1.0, seed=seed)) for seed in (7, 7, 8)]

    first, again, other = asyncio.run(twice())
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


@pytest.mark.parametrize("priority", [str(-(2**70)), "-1", "7", str(2**70)])
def test_a_priority_in_vllms_header_is_one_that_the_engine_takes(http: httpx.Client, priority: str) -> None:
    body = {"model": "policy", "prompt": "The capital of France is", "max_tokens": 1}
    assert http.post("/v1/completions", json=body, headers={"X-Vllm-Priority": priority}).status_code == 200


def test_who_asks_goes_before_rollouts_that_wait(policy: Setting, http: httpx.Client) -> None:
    at_once = load_settings().policy.max_num_seqs

    async def run() -> tuple[int, int]:
        async with policy.client() as client:
            sampling = Sampling(1.0, seed=1)
            rollouts = [
                asyncio.create_task(client.generate(policy.prompt_ids, 64, sampling)) for _ in range(2 * at_once + 8)
            ]
            watcher = httpx.AsyncClient(base_url=policy.server.url, headers=http.headers, timeout=60)
            async with watcher:
                while _metric((await watcher.get("/metrics")).text, "vllm:num_requests_waiting") < at_once:
                    assert not all(rollout.done() for rollout in rollouts)
                body = {"model": "policy", "prompt": "The capital of France is", "max_tokens": 1}
                (await watcher.post("/v1/completions", json=body)).raise_for_status()
                done = sum(rollout.done() for rollout in rollouts)
            await client.cut()  # what is left is not needed
            await asyncio.gather(*rollouts, return_exceptions=True)
            return done, len(rollouts)

    done, rollouts = asyncio.run(run())
    assert done <= at_once + 8, f"{done} of {rollouts} rollouts that were asked before were sampled first"


def test_an_update_in_flight_loses_no_request_and_marks_each_token(policy: Setting, perturbed: Path) -> None:
    seen_before = policy.generate()  # its prompt is now in the prefix cache, computed by the old weights
    old = policy.digests()

    async def run() -> list[Generation]:
        async with policy.client() as client, policy.admin() as admin:
            asked = [
                asyncio.create_task(client.generate(policy.prompt_ids, 250, Sampling(1.0, seed=seed)))
                for seed in range(16)
            ]
            async with httpx.AsyncClient(base_url=policy.server.url) as watcher:
                # Each look is a round trip, so this loop is no busy wait.
                while _sampled_tokens((await watcher.get("/metrics")).text) - start < 300:
                    pass
            answer = await admin.update_weights(WeightsRequest(path=str(perturbed), version="1"))
            print("seconds of each phase:", answer.seconds)
            return await asyncio.gather(*asked)

    with policy.server.client() as client:
        start = _sampled_tokens(client.get("/metrics").text)
    generations = asyncio.run(run())
    assert len(generations) == 16
    both = [g for g in generations if set(g.versions) == {"0", "1"}]
    assert both, [sorted(set(g.versions)) for g in generations]
    for generation in generations:
        assert generation.versions == sorted(generation.versions)
        assert len(generation.versions) == len(generation.token_ids) == len(generation.logprobs)
        assert generation.finish is Finish.EOS or len(generation.token_ids) == 250
    new = policy.digests()
    changed = {key for key in old if old[key] != new[key]}
    # Every matrix: 30 layers of four packed ones, the embeddings as a table, and the two packed heads tied to them.
    assert len([key for key in changed if ".packed" in key]) == 30 * 4 + 2
    assert policy.generate(version="0").logprobs != seen_before.logprobs


def test_after_an_update_all_is_as_on_a_fresh_server(policy: Setting, perturbed: Path, launch: Any, runs: Path) -> None:
    prompts = [policy.prompt_ids, policy.tokenizer.prompt_ids(load_prompt("research-small"), "Where is Paris?")]
    # Salted with the old version on purpose: even so nothing of the old weights may come out of the cache.
    updated = [policy.generate(prompt=prompt, version="0") for prompt in prompts]
    with policy.server.client() as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        body = {"model": "policy", "prompt": policy.prompt_ids, "max_tokens": 8, "temperature": 0, "logprobs": 0}
        plain = client.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]
    digests = policy.digests()
    server_end(policy.server.process)

    fresh = open_setting(launch, runs, perturbed, f"model.name={perturbed}")
    assert fresh.digests() == digests
    for prompt, before in zip(prompts, updated, strict=True):
        again = fresh.generate(prompt=prompt)
        assert again.token_ids == before.token_ids
        assert again.logprobs == pytest.approx(before.logprobs, abs=1e-4)
    with fresh.server.client() as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        again_plain = client.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]
    assert again_plain["text"] == plain["text"]
    assert again_plain["logprobs"]["token_logprobs"] == pytest.approx(plain["logprobs"]["token_logprobs"], abs=1e-4)


def _sampled_tokens(metrics: str) -> float:
    return _metric(metrics, "vllm:generation_tokens_total")


def _metric(metrics: str, name: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith(name + "{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
