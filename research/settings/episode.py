"""`[episode]`: how an episode runs, and its limits."""

from __future__ import annotations

from pydantic import Field

from research.settings.base import PositiveInt, Section


class EpisodeConfig(Section):
    """How an episode runs: the same for training, evaluation and /answer."""

    prompt: str = Field(
        "research-instruct",
        description="name of a file in research/prompts, or a path; its first line may name a prompt form",
    )
    allow_prompt_mismatch: bool = Field(False, description="accept a prompt that the checkpoint was not trained with")
    top_k: PositiveInt = Field(5, description="passages per search")
    max_searches: int | None = Field(
        None, ge=0, description="searches and opened pages per episode; None: as many as fit"
    )
    max_tokens: PositiveInt = Field(8192, description="tokens after the prompt, results included")
    max_turn_tokens: PositiveInt | None = Field(None, description="sampled tokens between two searches; None: no limit")
    max_passage_tokens: PositiveInt | None = Field(
        None, description="a longer text or title of a passage is cut; None: never"
    )
    max_page_tokens: PositiveInt | None = Field(
        1024, description="of a page that the model opens, so much is shown; None: all. See the prompt research-open"
    )
    temperature: float = Field(1.0, ge=0.0, le=2.0, description="of sampling in training; evaluation is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="probability mass that training samples from; 1: all")
    request_timeout: float = Field(
        120.0,
        gt=0,
        description="seconds without a sign of life after which a policy server counts as gone. In training, a "
        "generation gets these to begin, and then time for as many tokens as it may sample, at the pace of the "
        "others; one that takes longer is truncated",
    )
    search_timeout: float = Field(30.0, gt=0, description="seconds for one search request")
    retries: int = Field(4, ge=0, description="further tries of a failed request, with exponential back-off")
