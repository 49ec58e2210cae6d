"""`[evaluation]`, `[checkpoints]`, `[alarms]`, `[ablation]`, `[study]`, `[bench]`: to watch and compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from research.settings.base import Counts, Fraction, PositiveInt, Section, without_credentials


class EvaluationConfig(Section):
    """Greedy evaluation on held-out questions."""

    per_kind: Counts = Field(
        64,
        description="questions per kind (and as many with a template never trained on), or such as "
        "{one_hop = 64, two_hop_new_template = 32}, and then no others",
    )
    interval: int = Field(0, ge=0, description="steps between interim evaluations; 0: only before and after")
    interim_per_kind: Counts = Field(32, description="as per_kind, for an interim evaluation")
    pass_at_k_per_kind: Counts = Field(
        0, description="as per_kind: questions sampled grpo.group_size times before GRPO, for pass@k"
    )


class CheckpointsConfig(Section):
    """What is kept on disk."""

    interval: PositiveInt = Field(5, description="steps between checkpoints")
    keep: PositiveInt = Field(2, description="checkpoints kept")
    publish_dir: Path | None = Field(None, description="where new weights are written; None: in the run")


# "roll_back" was its name until 2026-11.
AlarmAction = Annotated[
    Literal["warn", "stop", "rollback"], BeforeValidator(lambda action: "rollback" if action == "roll_back" else action)
]


class AlarmsConfig(Section):
    """Signs that a run goes wrong. `rollback` returns to the last checkpoint, with new questions."""

    entropy_floor: float | None = Field(0.01, ge=0, description="nats per token, mean of three steps; None: off")
    on_low_entropy: AlarmAction = Field("warn", description="what to do below entropy_floor")
    well_formed_floor: float | None = Field(
        0.3, ge=0, le=1, description="fraction of episodes, mean of three steps; None: off"
    )
    on_malformed: AlarmAction = Field("warn", description="what to do below well_formed_floor")
    mismatch_kl_ceiling: float | None = Field(
        0.05, gt=0, description="nats per token between sampler and learner; None: off"
    )
    start_mismatch_ceiling: float | None = Field(
        0.25,
        gt=0,
        description="nats per token between sampler and learner on a few tokens at the start, mean of the absolute "
        "differences; above it the run refuses to start; None: no check",
    )
    on_mismatch: AlarmAction = Field("warn", description="what to do above mismatch_kl_ceiling")
    likelihood_share: Fraction = Field(
        0.1,
        description="right episodes whose likelihood is measured again after an update, as a share of its batch; a "
        "forward pass over them adds about half of that share to the update's time; 0: none",
    )
    likelihood_falls: PositiveInt | None = Field(
        5, description="updates in a row after which right episodes were less likely than before; None: off"
    )
    repetition_ceiling: Fraction | None = Field(
        0.5, description="share of an episode's runs of four words that it wrote before, mean of three steps; None: off"
    )
    empty_thoughts_ceiling: Fraction | None = Field(
        0.9, description="share of turns that think less than three words, mean of three steps; None: off"
    )
    unanswered_ceiling: Fraction | None = Field(
        0.5,
        description="share of episodes that the model ended by itself without an answer, mean of three steps; None: "
        "off",
    )
    searched_floor: Fraction | None = Field(
        0.02, description="share of episodes that search at all, mean of three steps; None: off"
    )
    repeated_queries_ceiling: Fraction | None = Field(
        0.5, description="share of searches whose query their episode asked before, mean of three steps; None: off"
    )
    on_collapse: AlarmAction = Field("warn", description="what to do beyond any of these six limits")
    max_rollbacks: PositiveInt = Field(3, description="after so many rollbacks the run stops")


class AblationConfig(Section):
    """A run that must not, or need not, learn from rewards: a control to compare a real run with."""

    kind: Literal["none", "shuffled_rewards", "supervised"] = Field(
        "none",
        description="shuffled_rewards: GRPO with the rewards of a batch shuffled; "
        "supervised: the supervised phase continues instead of GRPO",
    )
    seconds: float = Field(600, gt=0, description="how long `supervised` trains, over all steps")


class StudyConfig(Section):
    """Several runs that are reported together: per seed one supervised phase, and each arm from there."""

    seeds: list[int] = Field([1, 2, 3], min_length=1, description="one set of runs per seed")
    arms: list[Literal["grpo", "shuffled_rewards", "supervised"]] = Field(
        ["grpo", "shuffled_rewards", "supervised"], min_length=1, description="what is compared"
    )


class PriceConfig(Section):
    """What an endpoint charges."""

    input: float = Field(ge=0, description="USD per million prompt tokens")
    output: float = Field(ge=0, description="USD per million sampled tokens")
    search: float = Field(0.0, ge=0, description="USD per thousand searches")


class BenchConfig(Section):
    """Strategies against question sets (`research bench`)."""

    questions: list[str] = Field(
        default_factory=list,
        description="hotpotqa, 2wikimultihopqa, musique, bamboogle (of the hub), files or hub:…; "
        "empty: questions.held_out",
    )
    per_kind: Counts | None = Field(None, description="as evaluation.per_kind; None: every question")
    endpoint: Annotated[str, without_credentials("RESEARCH_ENDPOINT_API_KEY")] = Field(
        "", description="an OpenAI API to ask instead of the policy service, as https://host/v1; ReSearch needs vLLM's"
    )
    model: str = Field("", description="the name by which the endpoint knows the model")
    judge_endpoint: Annotated[str, without_credentials("RESEARCH_JUDGE_API_KEY")] = Field(
        "", description="an OpenAI API that judges answers; empty: no judge"
    )
    judge_model: str = Field("", description="the name by which it knows the judge")
    prices: dict[str, PriceConfig] = Field(
        default_factory=dict, description='by the name of the model, such as {"gpt" = {input = 0.15, output = 0.6}}'
    )

    @model_validator(mode="after")
    def _endpoints_have_models(self) -> BenchConfig:
        for endpoint, model in (("endpoint", "model"), ("judge_endpoint", "judge_model")):
            if bool(getattr(self, endpoint)) != bool(getattr(self, model)):
                raise ValueError(f"{endpoint} and {model} are given together or not at all")
        return self
