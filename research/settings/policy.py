"""`[policy]`, `[endpoints]` and `[episode]`: the policy server, where services are found, and how an episode runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from research.settings.base import Fraction, Port, PositiveInt, Section


class PolicyConfig(Section):
    """The policy server (vLLM) and its search agent. Names of vLLM's own options are vLLM's."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every network")
    port: Port = Field(8001, description="port to listen on")
    threads: PositiveInt = Field(2, description="threads of vLLM on a CPU")
    kv_cache_gib: PositiveInt = Field(2, description="size of the KV cache on a CPU, in GiB")
    max_num_seqs: PositiveInt = Field(64, description="most requests that are decoded together")
    enforce_eager: bool = Field(False, description="skip compilation: faster start, slower decoding on a GPU")
    gpu_memory_utilization: Fraction = Field(0.85, description="fraction of GPU memory that vLLM may take")
    tensor_parallel_size: PositiveInt = Field(1, description="GPUs that share one model")
    max_lora_rank: Literal[0, 8, 16, 32, 64, 128, 256] = Field(
        0, description="largest rank of LoRA adapters that can be loaded; 0: no adapters"
    )
    answer_concurrency: PositiveInt = Field(64, description="/answer requests at once; more are refused with 429")
    answer_timeout: float = Field(120.0, gt=0, description="seconds until /answer gives up")
    max_question_chars: PositiveInt = Field(8192, description="longer questions are refused with 422")
    serve: str = Field(
        "latest",
        description="weights at the start: `latest` of the run (model.name, if it has published none), `base` "
        "(model.name), or the path of a checkpoint",
    )
    weights_dir: Path = Field(
        Path("runs"), description="new weights are accepted from below this directory only; default: paths.runs"
    )


class EndpointsConfig(Section):
    """Where services find each other. An empty address means: on this machine, at the port of the service."""

    retriever_url: str = Field("", description="where episodes and /answer search; such as http://host:8000")
    policy_urls: list[str] = Field(
        default_factory=list, description="policy servers that sample; each gets every new version of the weights"
    )
    trainer_url: str = Field("", description="the trainer whose run the ask page shows")


class EpisodeConfig(Section):
    """How an episode runs: the same for training, evaluation and /answer."""

    prompt: str = Field("research-instruct", description="name of a file in research/prompts, or a path")
    allow_prompt_mismatch: bool = Field(False, description="accept a prompt that the checkpoint was not trained with")
    top_k: PositiveInt = Field(5, description="passages per search")
    max_searches: int | None = Field(None, ge=0, description="searches per episode; None: as many as fit")
    max_tokens: PositiveInt = Field(8192, description="tokens after the prompt, results included")
    max_turn_tokens: PositiveInt | None = Field(None, description="sampled tokens between two searches; None: no limit")
    max_passage_tokens: PositiveInt | None = Field(None, description="a longer passage is cut; None: never")
    temperature: float = Field(1.0, ge=0.0, le=2.0, description="of sampling in training; evaluation is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="probability mass that training samples from; 1: all")
    request_timeout: float = Field(120.0, gt=0, description="seconds for one generation request")
    search_timeout: float = Field(30.0, gt=0, description="seconds for one search request")
    retries: int = Field(4, ge=0, description="further tries of a failed request, with exponential back-off")
