"""`[questions]`, `[trainer]`, `[grpo]`, `[optimizer]`, `[sft]`: what a training run does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from research.settings.base import Fraction, Port, PositiveInt, Section
from research.settings.objectives import (
    IMPORTANCE_BANDS,
    AdvantageRule,
    ClipForm,
    ImportanceCorrection,
    ObjectiveName,
    RatioLevel,
    with_objective,
)

DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]


class QuestionsConfig(Section):
    """The questions of training and of evaluation."""

    train: str = Field("builtin", description="`builtin`, a JSONL file, or `hub:<dataset>:<config>:<split>`")
    held_out: str = Field("builtin", description="as `train`; for evaluation only")
    mix: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="fraction of each kind of question in a training batch; empty: as they come",
    )
    curriculum_candidates: PositiveInt = Field(
        1,
        description="questions drawn per question that is asked; the one is asked whose template is answered right "
        "closest to half of the time",
    )
    settled_share: Fraction = Field(
        1.0,
        description="of the questions that come up again although all their episodes so far were right, or all were "
        "wrong: the share that is asked; the others are passed over",
    )

    @field_validator("mix")
    @classmethod
    def _some_kind_is_asked(cls, mix: dict[str, float]) -> dict[str, float]:
        if mix and not any(mix.values()):
            raise ValueError("no kind has a fraction above 0; leave it empty for questions as they come")
        return mix


class TrainerConfig(Section):
    """The trainer and its control server."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every network")
    port: Port = Field(8002, description="port to listen on")
    weight_sync: Literal["file", "nccl"] = Field(
        "file",
        description="how policy servers get new weights: `file` from a disk (or /dev/shm) that they share with the "
        "trainer, `nccl` from GPU to GPU",
    )
    threads: PositiveInt = Field(2, description="torch threads of the learner on a CPU")
    processes: PositiveInt = Field(
        1,
        description="processes of the learner on this host, one per GPU, that hold the model together (FSDP2); "
        "`research train` and `research serve trainer` start torchrun; for many hosts, start it yourself",
    )
    replicate_hosts: bool = Field(
        False,
        description="shard the model within a host and replicate it between hosts (HSDP): less traffic between hosts, "
        "more memory",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the learner computes")
    max_staleness: int = Field(
        0,
        ge=0,
        description="how many updates older than the trained weights an episode may be: with 0 each step waits for its "
        "episodes; from 1 on they are sampled while the learner updates, and new weights reach episodes under way",
    )
    outage_timeout: float = Field(900.0, gt=0, description="seconds that training waits for an unavailable service")


class GrpoConfig(Section):
    """Group relative policy optimization."""

    steps: int = Field(20, ge=0, description="training steps; 0: only the supervised phase")
    minutes: float | None = Field(
        None,
        gt=0,
        description="time of the whole run: no step begins that would not end within it, last evaluation included; "
        "None: no limit",
    )
    questions_per_step: PositiveInt = Field(256, description="questions per training step, a group of episodes each")
    group_size: int = Field(5, ge=2, description="episodes per question")
    branches: int = Field(
        0,
        ge=0,
        description="of the episodes of a group, so many go on from a search result of another, chosen by chance, and "
        "share its tokens up to there (Tree-GRPO); 0: all begin with the prompt (docs/objectives.md)",
    )
    objective: ObjectiveName = Field(
        "grpo",
        description="sets advantage, scale_advantages, ratio_level, clip_form, clip_low, clip_high, loss_aggregation "
        "and, where its paper has no KL term, kl_coefficient; each can still be set beside it (docs/objectives.md)",
    )
    advantage: AdvantageRule = Field(
        "group",
        description="what a reward is compared with: the mean of its group, that of the others of its group (RLOO), "
        "the mean over all tokens of the batch (REINFORCE++), or the group's and then the batch's (REINFORCE++ with "
        "baseline)",
    )
    ratio_level: RatioLevel = Field(
        "token",
        description="ratio of new to old policy: per token, its geometric mean over the sequence (GSPO), or its "
        "product (RLOO); these two cost a forward pass per optimizer step after the first. While a batch gets one "
        "optimizer step the ratio is 1, and neither this nor a clip does anything",
    )
    clip_form: ClipForm = Field(
        "surrogate",
        description="what is clipped: PPO's surrogate, so that clipped tokens lose their gradient, or the weight of "
        "the gradient (CISPO), so that they keep it",
    )
    clip_low: float = Field(0.2, gt=0, description="the importance ratio is clipped below 1 - clip_low")
    clip_high: float = Field(0.2, gt=0, description="the importance ratio is clipped above 1 + clip_high")
    kl_coefficient: float = Field(
        0.001, ge=0, description="weight of the KL divergence from the reference; 0: no reference model in memory"
    )
    entropy_coefficient: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    importance_correction: ImportanceCorrection = Field(
        "tis",
        description="of the difference between sampler and learner: `tis` caps each token's weight at tis_cap; the "
        "others also leave out what lies outside importance_band: tokens (`mis`, IcePop), or whole sequences by the "
        "product of their ratios (`sequence_mask`) or its geometric mean (`geometric_mask`), for one forward pass more",
    )
    importance_band: tuple[float, float] | None = Field(
        None,
        description="lowest and highest ratio of learner to sampler that a mask keeps; None: 0.5 to 2, for "
        "geometric_mask 0.99 to 1.01",
    )
    tis_cap: float | None = Field(2.0, gt=0, description="cap of truncated importance sampling; None: no cap")
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="the most that the importance ratio counts for a token of a bad episode (3 is usual, and matters "
        "with several optimizer steps per batch only); None: unbounded, as in GRPO",
    )
    loss_aggregation: Literal["token", "constant", "sequence"] = Field(
        "token",
        description="mean over all tokens (DAPO), sum over a constant length (Dr. GRPO), or mean of sequence means "
        "(GRPO)",
    )
    constant_length: PositiveInt = Field(8192, description="the constant of loss_aggregation = 'constant', in tokens")
    scale_advantages: bool = Field(
        True,
        description="divide by the standard deviation of the group (or batch, by `advantage`), as GRPO does; false: "
        "Dr. GRPO",
    )
    num_iterations: PositiveInt = Field(1, description="passes over the batch")
    mini_batches: PositiveInt = Field(
        1, description="optimizer steps per pass, each over a part of the batch's groups (PPO's mini-batches)"
    )
    mask_truncated: bool = Field(
        False,
        description="exclude episodes that the token limit cut off, from the loss and from the comparison in their "
        "group; one search too many is not masked",
    )
    train_per_group: int | None = Field(
        None,
        ge=2,
        description="train on this many episodes per group, those whose rewards vary most, compared with each other; "
        "None: on all",
    )
    count_silent_groups: bool = Field(
        False,
        description="groups of equal rewards count in the denominators of the loss and get the KL and entropy terms, "
        "as in verl and TRL, which costs their computation if there are such terms; false: they are left out",
    )
    refill_rounds: int = Field(
        0,
        ge=0,
        description="times per step that groups without signal are replaced by further questions (DAPO's dynamic "
        "sampling), until questions_per_step groups have one; 0: never",
    )
    straggler_share: Fraction = Field(
        0.0,
        description="as soon as no more than this share of a step's episodes is unfinished, they are cut: what they "
        "wrote is scored as truncated; 0: the step waits for all",
    )
    per_episode_seeds: bool = Field(
        True, description="give each episode a seed of its own; on a GPU, vLLM samples slower with seeds"
    )
    service_retries: int = Field(5, ge=0, description="times that an episode is sampled again after a service failed")

    @property
    def kept_band(self) -> tuple[float, float] | None:
        """The ratios of learner to sampler that are kept; None if none is left out."""
        return self.importance_band or IMPORTANCE_BANDS.get(self.importance_correction)

    @model_validator(mode="before")
    @classmethod
    def _follow_the_objective(cls, values: Any) -> Any:
        return with_objective(values)

    @model_validator(mode="after")
    def _branches_agree(self) -> GrpoConfig:
        if self.branches >= self.group_size:
            raise ValueError(
                f"branches = {self.branches} of group_size = {self.group_size} episodes leave none to grow from; set "
                f"branches to at most {self.group_size - 1}"
            )
        if self.branches and self.advantage in ("batch", "group_and_batch"):
            raise ValueError(
                f"branches are compared within their tree and their group, but advantage is {self.advantage!r}; set "
                "branches=0, or choose an objective that compares within groups"
            )
        if self.branches and self.straggler_share:
            raise ValueError(
                "straggler_share cuts the episodes that end last, which branches do because they begin last; set one "
                "of the two to 0"
            )
        return self

    @model_validator(mode="after")
    def _settings_agree(self) -> GrpoConfig:
        if self.clip_form == "weight" and self.dual_clip is not None:
            raise ValueError("dual_clip bounds PPO's surrogate, but clip_form is 'weight' (CISPO); set dual_clip=None")
        if self.clip_form == "weight" and self.ratio_level != "token":
            raise ValueError(
                f"clip_form 'weight' (CISPO) weighs each token by its own ratio, but ratio_level is "
                f"{self.ratio_level!r}; set ratio_level=token, or clip_form=surrogate"
            )
        if self.importance_band is not None:
            low, high = self.importance_band
            if self.importance_correction == "tis":
                raise ValueError(
                    "importance_band says what a mask keeps, but importance_correction is 'tis', which leaves nothing "
                    "out; choose mis, sequence_mask or geometric_mask, or set tis_cap instead"
                )
            if not 0 <= low < 1 < high:
                raise ValueError(f"importance_band goes from below 1 to above 1, not from {low:g} to {high:g}")
        return self


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    learning_rate: float = Field(1e-6, gt=0, description="of GRPO")
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises from 0")
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="after warmup_steps; linear would reach 0 with the step after grpo.steps"
    )
    betas: tuple[DecayRate, DecayRate] = Field((0.9, 0.999), description="AdamW's decay rates")
    weight_decay: float = Field(
        0.01, ge=0, description="AdamW's weight decay, of all weights, norms and biases included"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    micro_batch_tokens: PositiveInt = Field(
        8192, description="most tokens per forward and backward pass; a longer episode gets its own"
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compute each layer again in the backward pass instead of keeping its activations: a third more "
        "work for much less memory; auto: only if they would not fit, or if several processes share the model",
    )
    frozen_layers: int = Field(0, ge=0, description="lowest layers (and the embeddings) that are not trained")


class LoraConfig(Section):
    """LoRA: train a few factors beside frozen weights. With rank 0, all weights are trained."""

    rank: int = Field(0, ge=0, description="rank of the factors, 16 to 64 are usual; 0: no LoRA")
    alpha: PositiveInt = Field(32, description="what the factors add is multiplied by alpha / rank")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="linear layers that get factors, by the ends of their names",
    )


class SftConfig(Section):
    """Supervised fine-tuning on the format, before GRPO, for models that are too small to follow it."""

    enabled: bool = Field(False, description="whether the run begins with it")
    traces: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {"one_hop": 128, "two_hop": 24}, description="distinct traces per kind of question"
    )
    steps: PositiveInt = Field(25, description="optimizer steps")
    batch_size: PositiveInt = Field(8, description="traces per step")
    learning_rate: float = Field(2e-4, gt=0, description="of the supervised phase")
    retry_fraction: Fraction = Field(0.4, description="fraction of traces with a failed first search and a retry")
