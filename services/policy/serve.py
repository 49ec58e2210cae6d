"""Runs vLLM's own OpenAI server with our plugin; settings become its arguments and environment.

Run as a module by `services.policy.main`.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import sys

import torch

from research.errors import ResearchError
from research.prompts import check_prompt, load_prompt, trained_prompt
from research.settings import Settings
from services.machine.number_formats import resolved
from services.policy.adapters.checks import MAX_AT_ONCE, MAX_LOADED
from services.policy.plugin import PLUGIN_NAMES
from services.policy.settings_variable import NUMBERS_VARIABLE, SETTINGS_VARIABLE, settings_from_environment
from services.policy.weights.start_weights import VERSION_VARIABLE, start_weights
from services.process.parent import end_with_parent
from services.web.auth import API_KEY_VARIABLE, environment_secret
from services.web.telemetry.logs import LOGGING

logger = logging.getLogger(__name__)

SERVED_NAME = "policy"
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def run_server(settings: Settings) -> None:
    """Run the policy server in this process until it ends.

    Raises:
        AssetError: the model is missing.
        ConfigurationError: the model was trained with another prompt.
    """
    limits = settings.episode
    settings, numbers = resolved(settings, "auto")
    weights = start_weights(settings)
    check_prompt(
        load_prompt(limits.prompt),
        trained_prompt(weights.path),
        str(weights.path),
        allow_mismatch=limits.allow_prompt_mismatch,
    )
    logger.info(numbers.line)
    if numbers.warning:
        logger.warning(numbers.warning)
    logger.info("serving weight version %s, %s: %s", weights.version, weights.why, weights.path)
    model = str(weights.path)
    os.environ.update(server_environment(settings))
    os.environ |= {VERSION_VARIABLE: weights.version, NUMBERS_VARIABLE: numbers.line}
    # vLLM reads the environment as it is imported.
    from services.policy.engine_process import fork_engine
    from services.policy.http_server import run

    if computes_in_engine(settings):
        fork_engine(settings.policy.port)
    run(server_arguments(settings, model))


def server_arguments(settings: Settings, model: str) -> list[str]:
    """Command-line arguments of vLLM's server."""
    policy = settings.policy
    arguments = [
        *("--model", model),
        *("--served-model-name", SERVED_NAME),
        *("--host", policy.host),
        *("--port", str(policy.port)),
        *("--dtype", settings.model.dtype),
        *("--max-model-len", str(settings.model.max_model_len)),
        *("--max-num-seqs", str(policy.max_num_seqs)),
        # Who asks goes before a trainer's rollouts (docs/adr/117).
        *("--scheduling-policy", "priority"),
        *("--tensor-parallel-size", str(policy.tensor_parallel_size)),
        *("--gpu-memory-utilization", str(policy.gpu_memory_utilization)),
        *("--seed", str(settings.seed)),
        # Log-probabilities of the distribution that tokens are really sampled from.
        *("--logprobs-mode", "processed_logprobs"),
        *("--weight-transfer-config", json.dumps({"backend": "file"})),
        *("--worker-extension-cls", "services.policy.weights.worker_extension.ResearchWorker"),
        # Opens the token-in/token-out route; the API key guards it.
        "--enable-scale-out",
        "--disable-uvicorn-access-log",
        *("--middleware", "services.policy.api.outermost.Outermost"),
        # The pages' scripts come with vLLM, not from another host into the origin of this server.
        "--enable-offline-docs",
        *("--generation-config", "vllm"),
    ]
    if policy.max_lora_rank:
        arguments += [
            *("--enable-lora", "--max-lora-rank", str(policy.max_lora_rank)),
            *("--max-loras", str(MAX_AT_ONCE), "--max-cpu-loras", str(2 * MAX_LOADED)),
        ]
    if not torch.cuda.is_available():
        # On a CPU, vLLM 0.32 crashes when a request with a seed is prefilled in parts: it then takes back a random
        # draw, which CPU generators cannot do ("CPU Generator does not use offset").
        arguments.append("--no-enable-chunked-prefill")
        if computes_in_engine(settings):
            # By default vLLM computes in a process of its own on a CPU: a start took 27 s instead of 20, one request
            # made 34 tokens/s instead of 40 (docs/adr/069).
            arguments += ["--distributed-executor-backend", ONE_PROCESS]
    if policy.enforce_eager:
        arguments.append("--enforce-eager")
    return arguments


def computes_in_engine(settings: Settings) -> bool:
    """Whether the engine has no workers beside it: one model on a CPU."""
    return not torch.cuda.is_available() and settings.policy.tensor_parallel_size == 1


def server_environment(settings: Settings) -> dict[str, str]:
    """Environment of vLLM's server; variables that would open unguarded routes are forced off."""
    environment = {
        SETTINGS_VARIABLE: settings.model_dump_json(),
        "VLLM_PLUGINS": PLUGIN_NAMES,
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.policy.kv_cache_gib),
    }
    if settings.policy.enforce_eager:
        # vLLM compiles a few small functions even then, at the first request, and crashes without a C++ compiler.
        environment["TORCH_COMPILE_DISABLE"] = "1"
    if key := environment_secret(API_KEY_VARIABLE):
        environment["VLLM_API_KEY"] = key
    return environment


if __name__ == "__main__":
    logging.config.dictConfig(LOGGING)
    end_with_parent()
    try:
        run_server(settings_from_environment())
    except ResearchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
