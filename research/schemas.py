"""The wire contract: the bodies that services and clients exchange, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

# Values of a JSON body, items and fields: a body of more is refused before it is parsed.
MOST_VALUES = 1_000

NonBlank = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Request(BaseModel):
    """Base of request bodies: an unknown field is an error, so that a typo never passes silently."""

    model_config = ConfigDict(extra="forbid")

    most_values: ClassVar[int] = MOST_VALUES


class SearchRequest(Request):
    """Body of `POST /search`: one `query` or several `queries`."""

    query: NonBlank | None = Field(None, description="one query", examples=["painter of The Starry Night"])
    queries: Annotated[list[NonBlank], Field(min_length=1, max_length=512, fail_fast=True)] | None = Field(
        None, description="several queries, answered in order"
    )
    top_k: int = Field(5, ge=1, description="passages per query")
    index: str | None = Field(None, description="name of the index; default: the server's first")

    @model_validator(mode="before")
    @classmethod
    def _not_of_research(cls, body: Any) -> Any:
        # ReSearch's and ReCall's clients return None whatever the fault is; this is what their user finds by hand.
        if isinstance(body, dict) and "top_n" in body:
            raise ValueError("`top_n` is of ReSearch's clients: end their base URL in /compat/research")
        return body

    @model_validator(mode="after")
    def _one_form(self) -> SearchRequest:
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either `query` or `queries`")
        return self


class Hit(BaseModel):
    """One passage; `score` is a cosine (of unit vectors), or the score of fused rankings; higher is better.

    `fields` is what else its row in the corpus says, such as `url`; absent if nothing.
    """

    id: str
    title: str
    text: str
    score: float
    fields: dict[str, Any] | None = None


class SearchTimings(BaseModel):
    """Seconds that the request spent in each phase (the longest of its queries)."""

    queue: float
    encode: float
    search: float


class SearchResponse(BaseModel):
    """Answer of `POST /search`: `results[i]` are the hits of the i-th query, best first."""

    index: str
    revision: str
    results: list[list[Hit]]
    seconds: SearchTimings


class OpenRequest(Request):
    """Body of `POST /open`."""

    id: NonBlank = Field(description="the id of a hit, or the url of a page", examples=["https://example.org/"])


class OpenResponse(BaseModel):
    """Answer of `POST /open`: a passage, or a page with all its text; of the web, the page at the end of redirects.

    `url` is empty if the corpus names none; `fields` is what else its row says.
    """

    id: str
    title: str
    text: str
    url: str
    fields: dict[str, Any]


# How answers are found (research/strategies).
StrategyName = Literal["research", "naive", "naive-rag", "iter-retgen", "ircot"]


class AgentLimits(Request):
    """Limits of one request to the agent; each defaults to the preset's."""

    top_k: int | None = Field(None, ge=1, le=100, description="passages per search")
    max_searches: int | None = Field(None, ge=0, le=100)
    max_tokens: int | None = Field(None, ge=1, description="tokens after the prompt, results included")
    timeout: float | None = Field(None, gt=0, description="seconds; at most the server's policy.answer_timeout")


class AnswerRequest(AgentLimits):
    """Body of `POST /answer`: one `question` or several `questions`."""

    question: NonBlank | None = Field(
        None, description="one question", examples=["When was the painter of The Starry Night born?"]
    )
    questions: Annotated[list[NonBlank], Field(min_length=1, max_length=512, fail_fast=True)] | None = Field(
        None, description="several questions, answered in order"
    )
    strategy: StrategyName = Field(
        "research", description="how answers are found: by the agent, or by one of the baselines"
    )
    adapter: NonBlank | None = Field(None, description="name of a loaded LoRA adapter; default: the model alone")
    temperature: float = Field(0.0, ge=0.0, le=2.0, description="0 is greedy")
    seed: int | None = Field(None, ge=0, lt=2**31, description="makes sampling repeatable")
    stream: bool = Field(False, description="send each event as it happens, as server-sent events; one question only")

    @model_validator(mode="after")
    def _one_form(self) -> AnswerRequest:
        if (self.question is None) == (self.questions is None):
            raise ValueError("give either `question` or `questions`")
        if self.stream and self.questions is not None:
            raise ValueError("stream: only one `question` can be streamed")
        return self


class Step(BaseModel):
    """One piece of the trace: a thought, a search, the id of a page to open, what was found, the answer, other text."""

    kind: Literal["think", "search", "open", "result", "answer", "text"]
    text: str
    passages: list[str] = Field(default_factory=list, description="ids of the passages of a result")


class AnswerPassage(BaseModel):
    """A passage that the agent read."""

    id: str
    title: str
    text: str


class AnswerUsage(BaseModel):
    """Token counts; `result_tokens` were read, `sampled_tokens` written."""

    prompt_tokens: int
    sampled_tokens: int
    result_tokens: int
    searches: int


class AnswerSeconds(BaseModel):
    """Where the time went."""

    generate: float
    search: float
    total: float


class AnswerResponse(BaseModel):
    """Answer of `POST /answer`. `answer` is null if the model gave none in the required form."""

    question: str
    strategy: str = "research"
    adapter: str | None = None
    answer: str | None
    stop_reason: str
    format_fault: str | None
    trace: list[Step]
    passages: list[AnswerPassage]
    usage: AnswerUsage
    seconds: AnswerSeconds
    weight_versions: list[str]


class AnswersResponse(BaseModel):
    """Answer of `POST /answer` to several questions, in order."""

    answers: list[AnswerResponse]


Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class WeightsRequest(Request):
    """Body of `POST /admin/weights`: a directory of weights (or safetensors file) and its new version."""

    path: NonBlank
    version: Version


class TensorOnWire(Request):
    """Dtype (as safetensors names it: F32, BF16 and so on) and shape of a broadcast tensor."""

    dtype: str
    shape: Annotated[list[int], Field(max_length=16, fail_fast=True)]


class BroadcastOffer(Request):
    """Body of `POST /admin/weights/offer`: the tensors in the order in which the trainer would send them over NCCL."""

    # A mixture of experts has some ten thousand tensors.
    most_values: ClassVar[int] = 1_000_000

    tensors: dict[str, TensorOnWire]


class BroadcastRequest(BroadcastOffer):
    """Body of `POST /admin/weights/broadcast`: where this server's workers sit in the group of all servers."""

    group_id: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="id of an NCCL group, in base64; the trainer is rank 0 and the workers of all servers follow"
    )
    first_rank: int = Field(ge=1, description="rank of this server's first worker")
    ranks: int = Field(ge=2, description="ranks of the whole group")
    version: Version


class WeightsResponse(BaseModel):
    """The version now served, and the seconds of each phase of the update."""

    version: str
    seconds: dict[str, float]


# `WeightsStatus.source` of weights that came from GPU to GPU.
RECEIVED = "received from the trainer"


class WeightsStatus(BaseModel):
    """Which weights are served, where they came from, and by how many workers (GPUs) of this server.

    `fault`: why no request is answered until other weights are loaded; None if requests are. `updating`: whether an
    order to load others is being followed; None if the server does not tell.
    """

    version: str
    source: str
    workers: int
    fault: str | None = None
    updating: bool | None = None


class AdapterRequest(Request):
    """Body of `PUT /admin/adapters/{name}`: the directory of a LoRA adapter in PEFT's format."""

    path: NonBlank


class AdaptersStatus(BaseModel):
    """The LoRA adapters that are served: where each was loaded from, by name."""

    adapters: dict[str, str]


class ServiceStatus(BaseModel):
    """Answer of `/readyz`: 200 with `ready`, or 503 with the reason."""

    status: Literal["ready", "loading", "failed"]
    detail: str = ""


class WeightsQuality(BaseModel):
    """Greedy exact match of weights on held-out questions, by kind, with the number of questions of each."""

    evaluation: str
    em: dict[str, float]
    n: dict[str, int]


class TrainingState(BaseModel):
    """Answer of the policy's `/training`: what the trainer's run is doing.

    `done` of `total` counts the parts of the current phase; `seconds_left` is an estimate, and null where none is
    possible.
    """

    reachable: bool
    run: str = ""
    phase: str = ""
    step: int = 0
    steps: int = 0
    done: int = 0
    total: int = 0
    seconds_left: float | None = None


class PolicyInfo(BaseModel):
    """Answer of the policy's `/info`: the model it serves, the agent's name, the weights, and the retriever's state.

    `weights` is a fingerprint of the weights. `prompt` is the SHA-256 of the agent's prompt, and `trained_prompt` that
    of the prompt that the weights were trained with, if known.
    """

    model: str
    agent: str
    weight_version: str
    weights: str
    dtype: str
    number_format: str
    context_length: int
    prompt: str
    trained_prompt: str | None
    run: str | None = Field(None, description="the run that published the weights")
    trained: bool = Field(description="whether the weights were trained to search")
    quality: WeightsQuality | None = Field(None, description="figures of the last evaluation of these weights")
    notice: str = Field("", description="what a user should know before asking")
    retriever: ServiceStatus


class RequestLimits(BaseModel):
    """A request beyond these limits is refused; query tokens beyond their limit are cut."""

    top_k: int
    query_chars: int
    query_tokens: int
    queue: int


class IndexInfo(BaseModel):
    """One of the served indexes."""

    name: str
    revision: str
    passages: int
    structure: str
    lexical: bool
    built_with: str
    created: str


class WebInfo(BaseModel):
    """The web as what is searched: what is recorded, and what may still be sent.

    `exhausted` says why nothing is sent any more, and which setting to raise. Money is in the currency of `web.price`.
    """

    replay: bool
    recorded: int
    requests: int
    max_requests: int
    spent: float
    max_spend: float | None
    exhausted: str | None


class RetrieverInfo(BaseModel):
    """Answer of `GET /info`; `index` answers requests that name none. `web` is null if an index is searched."""

    encoder: str
    backend: str
    dimension: int
    pooling: str
    index: str
    indexes: list[IndexInfo]
    limits: RequestLimits
    web: WebInfo | None = None


class ErrorBody(BaseModel):
    """The body of every error of our services."""

    error: str
    message: str
    request_id: str | None = Field(None, description="names the request in the logs of every service that it reached")
