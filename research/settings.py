"""The tree of settings: every setting of a run, typed; units stand in the field's description."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Port = Annotated[int, Field(ge=1, le=65535)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
PositiveInt = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Counts = Annotated[int, Field(ge=0)] | dict[str, Annotated[int, Field(ge=0)]]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Paths(Section):
    """Where things lie; relative paths count from the working directory."""

    data: Path = Field(Path("data"), description="prepared models, corpora, indexes and questions")
    runs: Path = Field(Path("runs"), description="one directory a training run")


class Model(Section):
    """The language model that is trained and served."""

    name: str = Field(description="`builtin:smollm2-135m-instruct`, a hub name, or a checkpoint directory")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="number format that policy and learner compute in; auto: bfloat16 on GPUs and on CPUs that are "
        "fast at it, else float32",
    )
    max_length: PositiveInt = Field(description="context length of the policy server, in tokens")


class Encoder(Section):
    """The text encoder of the retriever."""

    name: str = Field(description="`builtin:multilingual-e5-small-enpt`, a hub name, or a checkpoint directory")
    backend: Literal["onnx-int8", "onnx", "torch"] = Field(
        "torch", description="runtime for queries; onnx-int8 is the fastest on a CPU, torch serves CUDA"
    )
    index_backend: Literal["onnx-int8", "onnx", "torch"] = Field("torch", description="runtime for passages")
    query_prefix: str = "query: "
    passage_prefix: str = "passage: "
    max_query_tokens: PositiveInt = 128
    max_passage_tokens: PositiveInt = 256


class Corpus(Section):
    """The passages that are searched."""

    name: str = Field(description="`builtin:wikipedia-leads`, or a file or directory of passages (docs/own-data.md)")
    index: str = Field(pattern=NAME, description="name of the index under <paths.data>/indexes")
    structure: Literal["auto", "flat", "hnsw", "ivf-sq8", "ivf-pq", "ivf-rabitq"] = Field(
        "auto", description="how vectors are kept; auto: exact up to 200,000 passages, then ever smaller"
    )
    lexical: bool = Field(False, description="index words, too, and fuse both rankings")
    milvus: str = Field(
        "", description="address of a Milvus cluster, or a .db file, that keeps the vectors; empty: FAISS"
    )

    @model_validator(mode="after")
    def _milvus_has_structures_of_its_own(self) -> Corpus:
        if self.milvus and self.structure not in ("auto", "flat"):
            raise ValueError(f"structure: {self.structure} is of FAISS; with corpus.milvus it is flat, or auto")
        return self


class Questions(Section):
    """What is asked in training and in evaluation."""

    train: str = Field("builtin", description="`builtin`, a JSONL file, or `hub:<dataset>:<config>:<split>`")
    held_out: str = Field("builtin", description="as `train`; used greedily for evaluation only")
    mix: dict[str, float] = Field(
        default_factory=dict,
        description="share of each kind of question in a training batch; empty: as they come",
    )
    candidates: PositiveInt = Field(
        1,
        description="questions looked at for each that is asked; taken is the one whose template is answered right "
        "nearest to half of the time",
    )


class RetrieverService(Section):
    """The retrieval server."""

    host: str = "127.0.0.1"
    port: Port = 8000
    threads: PositiveInt = Field(1, description="threads of the encoder")
    indexes: list[Annotated[str, Field(pattern=NAME)]] = Field(
        default_factory=list, description="further indexes to serve, of the same encoder; requests name them"
    )
    max_batch: PositiveInt = Field(64, description="queries encoded together at most")
    max_batch_tokens: PositiveInt = Field(2048, description="tokens encoded together at most")
    max_queue: PositiveInt = Field(4096, description="queries that may wait; more are refused with 429 (or 503)")
    merge: bool = Field(True, description="equal queries that are under way share one place")
    cache_mib: int = Field(64, ge=0, description="memory for the answers of former queries; 0: none are kept")
    max_query_chars: PositiveInt = Field(4096, description="longer queries are refused with 422")
    max_top_k: PositiveInt = 100
    max_hits: PositiveInt = Field(25_000, description="queries times top_k of a request; more are refused with 422")


class PolicyService(Section):
    """The policy server (vLLM) and its search agent."""

    host: str = "127.0.0.1"
    port: Port = 8001
    retriever_url: str = Field("", description="where /answer searches; empty: retriever.host and retriever.port")
    threads: PositiveInt = Field(2, description="threads of vLLM on a CPU")
    kv_cache_gib: PositiveInt = Field(2, description="size of the KV cache on a CPU, GiB")
    max_sequences: PositiveInt = Field(64, description="requests decoded together at most")
    eager: bool = Field(False, description="skip compilation: faster start, slower decoding on a GPU")
    gpu_memory: Probability = Field(0.85, description="share of GPU memory that vLLM may take")
    tensor_parallel: PositiveInt = 1
    answer_concurrency: PositiveInt = Field(64, description="/answer requests at once; more are refused with 429")
    answer_timeout: float = Field(120.0, gt=0, description="seconds until /answer gives up")
    max_question_chars: PositiveInt = Field(8192, description="longer questions are refused with 422")
    serve: str = Field(
        "latest",
        description="weights at the start: `latest` of the run (model.name, if it has published none), `base` "
        "(model.name), or the path of a checkpoint",
    )
    trainer_url: str = Field("", description="whose run the page shows; empty: trainer.host and trainer.port")
    weights_dir: Path = Field(
        Path("runs"), description="new weights are accepted from below this directory only; left out: paths.runs"
    )
    lora_rank: Literal[0, 8, 16, 32, 64, 128, 256] = Field(
        0, description="largest rank of LoRA adapters that can be loaded; 0: none can"
    )


class TrainerService(Section):
    """The trainer and its control server."""

    host: str = "127.0.0.1"
    port: Port = 8002
    retriever_url: str = Field("", description="where episodes search; empty: retriever.host and retriever.port")
    policy_urls: list[str] = Field(
        default_factory=list, description="every replica gets each new version; empty: policy.host and policy.port"
    )
    handover: Literal["file", "nccl"] = Field(
        "file",
        description="how servers get new weights: `file` from a disk (or /dev/shm) that they share with the trainer, "
        "`nccl` from GPU to GPU",
    )
    threads: PositiveInt = Field(2, description="torch threads of the learner on a CPU")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    outage_patience: float = Field(900.0, gt=0, description="seconds that training waits for a service to come back")


class EpisodeLimits(Section):
    """How an episode runs; the same for training, evaluation and /answer."""

    prompt: str = Field("research-instruct", description="name of a file in research/prompts, or a path")
    any_prompt: bool = Field(False, description="also a prompt that the checkpoint was not trained with")
    top_k: PositiveInt = Field(5, description="passages a search")
    max_searches: int | None = Field(None, ge=0, description="None: as many as fit")
    max_tokens: PositiveInt = Field(8192, description="tokens after the prompt, results included")
    max_turn_tokens: PositiveInt | None = Field(None, description="sampled tokens between two searches")
    max_passage_tokens: PositiveInt | None = Field(None, description="a passage longer than this is cut")
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    request_timeout: float = Field(120.0, gt=0, description="seconds for one generation request")
    search_timeout: float = Field(30.0, gt=0, description="seconds for one search request")
    retries: int = Field(4, ge=0, description="further tries of a failed request, with exponential back-off")


class Grpo(Section):
    """Group relative policy optimisation."""

    steps: int = Field(20, ge=0, description="0: only the warm-up")
    minutes: float | None = Field(
        None,
        gt=0,
        description="of a run's own time: no step is begun that would not end, with the last evaluation, within it; "
        "None: as long as it takes",
    )
    questions_per_step: PositiveInt = 256
    group_size: PositiveInt = Field(5, ge=2)
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.2, gt=0)
    kl_coefficient: float = Field(0.001, ge=0, description="0: no reference model is held")
    entropy_coefficient: float = Field(0.0, ge=0)
    tis_cap: float | None = Field(2.0, gt=0, description="cap of truncated importance sampling; None: off")
    normalization: Literal["token", "constant", "sequence"] = Field(
        "token", description="DAPO, Dr. GRPO, or a sequence"
    )
    constant_length: PositiveInt = Field(8192, description="the constant of normalization = 'constant', tokens")
    scale_advantages: bool = Field(
        True, description="divide by the standard deviation of the group, as GRPO does; false: Dr. GRPO"
    )
    optimizer_steps: PositiveInt = Field(1, description="optimizer steps a batch")
    mask_truncated: bool = Field(False, description="leave episodes that were cut out of the loss")
    keep_per_group: PositiveInt | None = Field(
        None, description="train on this many episodes of a group, half best and half worst; None: all"
    )
    seeded: bool = Field(
        True, description="give each episode a seed of its own; on a GPU, vLLM samples slower with seeds"
    )
    infra_retries: int = Field(3, ge=0, description="resamples of an episode that failed for want of a service")


class Optimizer(Section):
    """AdamW and what it sees."""

    learning_rate: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="after warmup_steps; linear would reach 0 with the step after grpo.steps"
    )
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch_tokens: PositiveInt = Field(8192, description="token budget of one forward and backward")
    frozen_layers: int = Field(0, ge=0, description="lowest layers (and the embeddings) that are not trained")


class Warmup(Section):
    """Short supervised warm-up on the format, for models too small to follow it by themselves."""

    enabled: bool = False
    traces: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {"one_hop": 128, "two_hop": 24}, description="distinct traces of each kind of question"
    )
    steps: PositiveInt = 25
    batch_size: PositiveInt = 8
    learning_rate: float = Field(2e-4, gt=0)
    retry_share: Probability = Field(0.4, description="share of traces with a failed first search and a retry")


class Evaluation(Section):
    """Greedy evaluation on held-out questions."""

    per_kind: Counts = Field(
        64,
        description="questions of each kind (and as many with a template never trained on), or such as "
        "{one_hop = 64, two_hop_new_template = 32}, and then no others",
    )
    every: int = Field(0, ge=0, description="steps between small evaluations; 0: only before and after")
    per_kind_between: Counts = Field(32, description="as per_kind, for a small evaluation")
    sampled_per_kind: Counts = Field(
        0, description="as per_kind: questions sampled grpo.group_size times before GRPO, for pass@k"
    )


class Price(Section):
    """What an endpoint asks for."""

    input: float = Field(ge=0, description="USD for a million tokens read")
    output: float = Field(ge=0, description="USD for a million tokens written")
    search: float = Field(0.0, ge=0, description="USD for a thousand searches")


class Bench(Section):
    """Strategies against question sets (`research bench`)."""

    questions: list[str] = Field(
        default_factory=list,
        description="hotpotqa, 2wikimultihopqa, musique, bamboogle (of the hub), files or hub:…; "
        "empty: questions.held_out",
    )
    per_kind: Counts | None = Field(None, description="as evaluation.per_kind; None: every question")
    endpoint: str = Field(
        "", description="an OpenAI API to ask instead of the policy service, as https://host/v1; ReSearch needs vLLM's"
    )
    model: str = Field("", description="the name by which the endpoint knows the model")
    judge_endpoint: str = Field("", description="an OpenAI API that judges answers; empty: nobody does")
    judge_model: str = Field("", description="the name by which it knows the judge")
    prices: dict[str, Price] = Field(
        default_factory=dict, description='by the name of the model, such as {"gpt" = {input = 0.15, output = 0.6}}'
    )

    @model_validator(mode="after")
    def _endpoints_have_models(self) -> Bench:
        for endpoint, model in (("endpoint", "model"), ("judge_endpoint", "judge_model")):
            if bool(getattr(self, endpoint)) != bool(getattr(self, model)):
                raise ValueError(f"{endpoint} and {model} are given together or not at all")
            if "@" in getattr(self, endpoint):
                raise ValueError(f"{endpoint}: it is written into records; give the key by the environment instead")
        return self


AlarmAction = Literal["warn", "stop", "roll_back"]


class Alarms(Section):
    """Signs that a run goes wrong; None switches one off. `roll_back` returns to the last checkpoint, with new
    questions."""

    entropy_floor: float | None = Field(0.01, ge=0, description="nats a token, mean of three steps")
    on_low_entropy: AlarmAction = "warn"
    well_formed_floor: float | None = Field(0.3, ge=0, le=1, description="share of episodes, mean of three steps")
    on_malformed: AlarmAction = "warn"
    mismatch_kl_ceiling: float | None = Field(0.05, gt=0, description="nats a token between sampler and learner")
    on_mismatch: AlarmAction = "warn"
    roll_backs: PositiveInt = Field(3, description="after so many the run stops")


class Control(Section):
    """A run that must not, or need not, learn from rewards: what a real run is compared with."""

    kind: Literal["none", "shuffled_rewards", "supervised"] = Field(
        "none",
        description="shuffled_rewards: GRPO with the rewards of a batch dealt out at random; "
        "supervised: the warm-up goes on instead of GRPO",
    )
    seconds: float = Field(600, gt=0, description="how long `supervised` trains, over all steps")


class Study(Section):
    """Several runs that are reported together: for each seed one warm-up, and each arm from there."""

    seeds: list[int] = Field([1, 2, 3], min_length=1)
    arms: list[Literal["grpo", "shuffled_rewards", "supervised"]] = Field(
        ["grpo", "shuffled_rewards", "supervised"], min_length=1
    )


class Checkpoints(Section):
    """What is kept on disk."""

    every: PositiveInt = Field(5, description="steps between checkpoints")
    keep: PositiveInt = Field(2, description="checkpoints kept")
    publish_dir: Path | None = Field(None, description="where new weights are handed over; None: in the run")


class Settings(Section):
    """The whole tree."""

    run: str = Field("demo", pattern=NAME, description="name of the run directory")
    seed: int = 1
    paths: Paths = Paths()
    model: Model
    encoder: Encoder
    corpus: Corpus
    questions: Questions = Questions()
    retriever: RetrieverService = RetrieverService()
    policy: PolicyService = PolicyService()
    trainer: TrainerService = TrainerService()
    episode: EpisodeLimits = EpisodeLimits()
    grpo: Grpo = Grpo()
    optimizer: Optimizer = Optimizer()
    warmup: Warmup = Warmup()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    alarms: Alarms = Alarms()
    control: Control = Control()
    study: Study = Study()
    bench: Bench = Bench()

    @model_validator(mode="after")
    def _addresses_follow_the_ports(self) -> Settings:
        """Services that are not said to be elsewhere are where their own sections put them; so are weights."""
        retriever = _address(self.retriever.host, self.retriever.port)
        policy = _address(self.policy.host, self.policy.port)
        urls = {
            "retriever_url": self.policy.retriever_url or retriever,
            "trainer_url": self.policy.trainer_url or _address(self.trainer.host, self.trainer.port),
        }
        object.__setattr__(self, "policy", self.policy.model_copy(update=urls))
        if "weights_dir" not in self.policy.model_fields_set:
            object.__setattr__(self, "policy", self.policy.model_copy(update={"weights_dir": self.paths.runs}))
        found = {
            "retriever_url": self.trainer.retriever_url or retriever,
            "policy_urls": self.trainer.policy_urls or [policy],
        }
        object.__setattr__(self, "trainer", self.trainer.model_copy(update=found))
        return self

    @model_validator(mode="after")
    def _episode_fits_the_context(self) -> Settings:
        if self.episode.max_tokens >= self.model.max_length:
            raise ValueError(
                f"episode.max_tokens ({self.episode.max_tokens}) must be below model.max_length "
                f"({self.model.max_length}), which also holds the prompt"
            )
        return self

    @property
    def run_dir(self) -> Path:
        return self.paths.runs / self.run

    @property
    def index_dir(self) -> Path:
        return self.paths.data / "indexes" / self.corpus.index


def _address(host: str, port: int) -> str:
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
