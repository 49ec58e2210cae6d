"""`[policy]` and `[endpoints]`: the policy server, and where services are found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from research.settings.base import LAST_PORT, Fraction, Port, PositiveInt, Section, without_credentials


class PolicyConfig(Section):
    """The policy server (vLLM) and its search agent. Names of vLLM's own options are vLLM's."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every network")
    port: Port = Field(8001, description="port to listen on")
    replicas: PositiveInt = Field(
        1, description="policy servers on this machine, at ports policy.port, policy.port + 1, …; each has its own GPUs"
    )
    threads: PositiveInt = Field(2, description="threads of each policy server on a CPU")
    kv_cache_gib: PositiveInt = Field(2, description="size of the KV cache of each policy server on a CPU, in GiB")
    keep_kv_cache: bool = Field(
        False,
        description="what requests under way have computed when new weights come: false: it is computed anew, as if "
        "the new weights had read all of it; true: it is kept, which costs nothing, and later tokens see keys and "
        "values of the former weights",
    )
    max_num_seqs: PositiveInt = Field(64, description="most requests that are decoded together")
    enforce_eager: bool = Field(False, description="skip compilation: faster start, slower decoding on a GPU")
    gpu_memory_utilization: Fraction = Field(0.85, description="fraction of GPU memory that vLLM may take")
    tensor_parallel_size: PositiveInt = Field(1, description="GPUs that share one model, in each policy server")
    max_lora_rank: Literal[0, 8, 16, 32, 64, 128, 256] = Field(
        0, description="largest rank of LoRA adapters that can be loaded; 0: no adapters"
    )
    answer_concurrency: PositiveInt = Field(64, description="/answer requests at once; more are refused with 429")
    answer_timeout: float = Field(120.0, gt=0, description="seconds until /answer gives up on a question")
    answer_list_timeout: float = Field(
        1800.0, gt=0, description="seconds until /answer gives up on a list of questions, which wait for places in it"
    )
    max_question_chars: PositiveInt = Field(8192, description="longer questions are refused with 422")
    serve: str = Field(
        "latest",
        description="weights at the start: `latest` of the run (model.name, if it has published none), `base` "
        "(model.name), or the path of a checkpoint",
    )
    weights_dir: Path = Field(
        Path("runs"), description="new weights are accepted from below this directory only; default: paths.runs"
    )

    @property
    def ports(self) -> range:
        """One port for each server."""
        return range(self.port, self.port + self.replicas)

    @model_validator(mode="after")
    def _ports_exist(self) -> PolicyConfig:
        if self.ports[-1] > LAST_PORT:
            raise ValueError(f"replicas = {self.replicas} from port {self.port} on needs ports beyond {LAST_PORT}")
        return self


Address = Annotated[str, without_credentials("RESEARCH_API_KEY or RESEARCH_ADMIN_TOKEN")]


class EndpointsConfig(Section):
    """Where services find each other. An empty address means: on this machine, at the port of the service."""

    retriever_url: Address = Field("", description="where episodes and /answer search; such as http://host:8000")
    retriever_urls: list[Address] = Field(
        default_factory=list,
        description="several retrievers with the same index, among which searches are divided; default: retriever_url",
    )
    policy_urls: list[Address] = Field(
        default_factory=list, description="policy servers that sample; each gets every new version of the weights"
    )
    trainer_url: Address = Field("", description="the trainer whose run the ask page shows")
    allowed_hosts: list[str] = Field(
        ["localhost", "retriever", "policy", "trainer"],
        description="names under which clients call the services, such as that of a proxy; addresses, this machine's "
        "own name and the names in the addresses above need not be listed",
    )
