"""LoRA adapters that are loaded into a real vLLM while it serves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import Server
from tests.services.policy.shared.conftest import ADMIN

RANK, ALPHA = 4, 8
MODULES = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
TEXT = "Vincent van Gogh painted The Starry Night in June 1889, from the window of his room at Saint-Rémy."


@pytest.fixture(scope="module")
def model(data_dir: Path) -> Path:
    return data_dir / "models" / "smollm2-135m-instruct"


def write_adapter(
    directory: Path, model: Path, seed: int, rank: int = RANK, size: float = 0.05
) -> dict[str, torch.Tensor]:
    """A random adapter of every layer in PEFT's format; returns what it adds to each matrix."""
    torch.manual_seed(seed)
    matrices = load_file(model / "model.safetensors")
    halves: dict[str, torch.Tensor] = {}
    added: dict[str, torch.Tensor] = {}
    for name, matrix in matrices.items():
        if not name.removesuffix(".weight").endswith(MODULES):
            continue
        a, b = torch.randn(rank, matrix.shape[1]) * size, torch.randn(matrix.shape[0], rank) * size
        module = f"base_model.model.{name.removesuffix('.weight')}"
        halves |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        added[name] = ALPHA / rank * b @ a
    directory.mkdir(exist_ok=True)
    save_file(halves, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": ALPHA,
        "target_modules": [module.rpartition(".")[2] for module in MODULES],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return added


@pytest.fixture
def http(policy: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with httpx.Client(base_url=policy.url, timeout=120, headers=headers) as client:
        yield client


def load(http: httpx.Client, name: str, path: Path) -> httpx.Response:
    return http.put(f"/admin/adapters/{name}", json={"path": str(path)})


def served_logprobs(http: httpx.Client, model: str) -> list[float]:
    """Of the tokens of TEXT but the first, as the server computes them."""
    body = {"model": model, "prompt": TEXT, "max_tokens": 1, "prompt_logprobs": 0}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return [next(iter(at.values()))["logprob"] for at in answer.json()["choices"][0]["prompt_logprobs"][1:]]


def merged_logprobs(model: Path, added: dict[str, torch.Tensor]) -> list[float]:
    """The same by transformers, the adapter being added to the matrices."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        for name, parameter in network.named_parameters():
            if name in added:
                parameter += added[name]
        ids = AutoTokenizer.from_pretrained(model)(TEXT, return_tensors="pt").input_ids
        logprobs = torch.log_softmax(network(ids).logits[0, :-1], dim=-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()


def mean_difference(these: list[float], those: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(these, those, strict=True)) / len(these)


def require_near(served: list[float], expected: list[float], other: list[float]) -> None:
    """What is served differs from what is expected by rounding (bfloat16 here), and by far less than the other does."""
    rounding, effect = mean_difference(served, expected), mean_difference(other, expected)
    assert effect > 0.3, "the adapter does nothing that could be seen"
    assert rounding < effect / 10, f"{rounding:.3f} nats a token off; the adapter makes {effect:.3f}"


def models(http: httpx.Client) -> set[str]:
    return {each["id"] for each in http.get("/v1/models").json()["data"]}


def test_an_adapter_computes_what_merging_it_would(http: httpx.Client, model: Path, runs: Path) -> None:
    digests = http.get("/admin/weights/digests").json()
    plain = served_logprobs(http, "policy")
    one = write_adapter(runs / "one", model, seed=1)
    assert load(http, "one", runs / "one").json() == {"adapters": {"one": str(runs / "one")}}
    assert {"policy", "research", "one", "research:one"} <= models(http)
    expected = merged_logprobs(model, one)
    require_near(served_logprobs(http, "one"), expected, plain)
    assert served_logprobs(http, "policy") == pytest.approx(plain, abs=1e-3)
    assert http.get("/admin/weights/digests").json() == digests

    # Other contents under the same path and name: no cached prefix of the former ones may be met.
    other = merged_logprobs(model, write_adapter(runs / "one", model, seed=2))
    assert load(http, "one", runs / "one").status_code == 200
    require_near(served_logprobs(http, "one"), other, expected)


def test_the_agent_answers_with_an_adapter(http: httpx.Client, model: Path, runs: Path) -> None:
    write_adapter(runs / "small", model, seed=3, size=0.001)
    assert load(http, "small", runs / "small").status_code == 200
    said = http.post("/answer", json={"question": "Who painted it?", "adapter": "small", "max_tokens": 16}).json()
    assert said["adapter"] == "small"
    chat = {"messages": [{"role": "user", "content": "Who painted it?"}], "max_tokens": 16}
    answer = http.post("/v1/chat/completions", json={**chat, "model": "research:small"}).json()
    assert answer["model"] == "research:small"
    assert answer["research"]["adapter"] == "small"
    assert http.post("/answer", json={"question": "Who?", "adapter": "none"}).status_code == 422
    assert http.post("/v1/chat/completions", json={**chat, "model": "research:none"}).status_code == 404

    assert http.delete("/admin/adapters/small").status_code == 200
    assert not {"small", "research:small"} & models(http)
    assert http.post("/answer", json={"question": "Who?", "adapter": "small"}).status_code == 422
    assert http.delete("/admin/adapters/small").status_code == 422


def test_what_is_replaced_unloaded_or_deleted_loses_no_request(http: httpx.Client, model: Path, runs: Path) -> None:
    for seed in (4, 5):
        write_adapter(runs / f"busy-{seed}", model, seed, size=0.01)
    assert load(http, "busy", runs / "busy-4").status_code == 200
    body = {"model": "busy", "prompt": TEXT, "max_tokens": 200, "ignore_eos": True}
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(http.post, "/v1/completions", json=body) for _ in range(8)]
        assert load(http, "busy", runs / "busy-5").status_code == 200
        assert http.delete("/admin/adapters/busy").status_code == 200
        assert load(http, "busy", runs / "busy-4").status_code == 200
        asked += [pool.submit(http.post, "/v1/completions", json=body) for _ in range(2)]
        assert http.delete("/admin/adapters/busy").status_code == 200
        for seed in (4, 5):
            shutil.rmtree(runs / f"busy-{seed}")
        answers = [each.result() for each in asked]
    assert {answer.status_code for answer in answers} <= {200, 404}
    assert all(answer.json()["usage"]["completion_tokens"] == 200 for answer in answers if answer.is_success)
    assert http.get("/readyz").status_code == 200


def broken_adapters(runs: Path, model: Path) -> Iterator[tuple[Path, str]]:
    """Adapters that must be refused, and what the refusal names."""
    yield runs.parent / "outside", "policy.weights_dir"
    yield runs / "nowhere", "does not exist"
    write_adapter(runs / "rank", model, seed=6, rank=16)
    yield runs / "rank", "rank 16"
    for name, change, fault in (
        ("nan", lambda t: t * float("nan"), "not finite"),
        ("shape", lambda t: t[:, :-1].contiguous() if t.shape[0] == RANK else t, "the matrix is"),
    ):
        write_adapter(runs / name, model, seed=6)
        weights = runs / name / "adapter_model.safetensors"
        save_file({key: change(tensor) for key, tensor in load_file(weights).items()}, weights)
        yield runs / name, fault
    write_adapter(runs / "stranger", model, seed=6)
    weights = runs / "stranger" / "adapter_model.safetensors"
    save_file({key.replace("layers.0", "layers.99"): t for key, t in load_file(weights).items()}, weights)
    yield runs / "stranger", "no matrix"
    write_adapter(runs / "half", model, seed=6)
    weights = runs / "half" / "adapter_model.safetensors"
    halves = load_file(weights)
    del halves["base_model.model.model.layers.3.mlp.down_proj.lora_B.weight"]
    save_file(halves, weights)
    yield runs / "half", "lacks its other half"
    write_adapter(runs / "cut", model, seed=6)
    with (runs / "cut" / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 100)
    yield runs / "cut", "cut off"
    write_adapter(runs / "pickle", model, seed=6)
    (runs / "pickle" / "adapter_model.safetensors").rename(runs / "pickle" / "adapter_model.bin")
    yield runs / "pickle", "only safetensors"
    write_adapter(runs / "no-config", model, seed=6)
    (runs / "no-config" / "adapter_config.json").unlink()
    yield runs / "no-config", "adapter_config.json"


def test_what_does_not_fit_is_refused_and_changes_nothing(http: httpx.Client, model: Path, runs: Path) -> None:
    before = http.get("/admin/adapters").json()
    for path, fault in broken_adapters(runs, model):
        answer = load(http, "broken", path)
        assert answer.status_code == 422, f"{path.name}: {answer.text}"
        assert fault in answer.json()["message"], path.name
    assert load(http, "policy", runs / "one").status_code == 422
    assert load(http, "research", runs / "one").status_code == 422
    assert load(http, "a b", runs / "one").status_code == 422
    assert http.get("/admin/adapters").json() == before
    with httpx.Client(base_url=http.base_url) as stranger:
        assert stranger.put("/admin/adapters/one", json={"path": str(runs / "one")}).status_code == 401


def test_full_weights_can_still_be_exchanged_below_an_adapter(http: httpx.Client, model: Path, runs: Path) -> None:
    added = write_adapter(runs / "on-top", model, seed=7)
    assert load(http, "on-top", runs / "on-top").status_code == 200
    # vLLM forgets adapters with an update, and reads them again: not from here.
    shutil.rmtree(runs / "on-top")
    changed = runs / "changed"
    shutil.copytree(model, changed)
    torch.manual_seed(8)
    tensors = {
        n: t + 0.01 * torch.randn_like(t) if t.ndim > 1 else t
        for n, t in load_file(changed / "model.safetensors").items()
    }
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    answer = http.post("/admin/weights", json={"path": str(changed), "version": "1"})
    assert answer.status_code == 200, answer.text
    plain, adapted = merged_logprobs(changed, {}), merged_logprobs(changed, added)
    require_near(served_logprobs(http, "policy"), plain, adapted)
    require_near(served_logprobs(http, "on-top"), adapted, plain)
