"""The whole tree of settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from research.settings.base import NAME, Section, address_of
from research.settings.credit import TurnsConfig
from research.settings.episode import EpisodeConfig
from research.settings.measuring import (
    AblationConfig,
    AlarmsConfig,
    BenchConfig,
    CheckpointsConfig,
    EvaluationConfig,
    StudyConfig,
)
from research.settings.model import ModelConfig, PathsConfig
from research.settings.policy import EndpointsConfig, PolicyConfig
from research.settings.retriever import CorpusConfig, EncoderConfig, RetrieverConfig, WebConfig
from research.settings.reward import RewardConfig
from research.settings.training import (
    GrpoConfig,
    LoraConfig,
    OptimizerConfig,
    QuestionsConfig,
    SftConfig,
    TrainerConfig,
)


class Settings(Section):
    """Every setting of every command, typed; `research config --describe` prints them."""

    run: str = Field("demo", pattern=NAME, description="name of the run directory")
    seed: int = Field(1, description="seed of questions, sampling and shuffles")
    paths: PathsConfig = PathsConfig()
    model: ModelConfig
    encoder: EncoderConfig
    corpus: CorpusConfig
    questions: QuestionsConfig = QuestionsConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    web: WebConfig = WebConfig()
    policy: PolicyConfig = PolicyConfig()
    trainer: TrainerConfig = TrainerConfig()
    endpoints: EndpointsConfig = EndpointsConfig()
    episode: EpisodeConfig = EpisodeConfig()
    grpo: GrpoConfig = GrpoConfig()
    reward: RewardConfig = RewardConfig()
    turns: TurnsConfig = TurnsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig = LoraConfig()
    sft: SftConfig = SftConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    ablation: AblationConfig = AblationConfig()
    study: StudyConfig = StudyConfig()
    bench: BenchConfig = BenchConfig()

    @model_validator(mode="after")
    def _fill_in_addresses(self) -> Settings:
        """A service without an address is where its own section puts it; weights come from the runs."""
        given, several = self.endpoints.retriever_url, self.endpoints.retriever_urls
        if given and several and given not in several:
            raise ValueError("endpoints.retriever_url is not among endpoints.retriever_urls; set one of the two")
        url = given or next(iter(several), "") or address_of(self.retriever.host, self.retriever.port)
        found = {
            "retriever_url": url,
            "retriever_urls": several or [url],
            "policy_urls": self.endpoints.policy_urls
            or [address_of(self.policy.host, port) for port in self.policy.ports],
            "trainer_url": self.endpoints.trainer_url or address_of(self.trainer.host, self.trainer.port),
        }
        object.__setattr__(self, "endpoints", self.endpoints.model_copy(update=found))
        if "weights_dir" not in self.policy.model_fields_set:
            object.__setattr__(self, "policy", self.policy.model_copy(update={"weights_dir": self.paths.runs}))
        return self

    @model_validator(mode="after")
    def _policies_have_ports_of_their_own(self) -> Settings:
        # The port of a single policy may be that of a service on another machine.
        if self.policy.replicas > 1:
            for name, port in (("retriever.port", self.retriever.port), ("trainer.port", self.trainer.port)):
                if port in self.policy.ports:
                    raise ValueError(
                        f"policy.replicas = {self.policy.replicas} takes ports {self.policy.ports[0]} to "
                        f"{self.policy.ports[-1]}, and {name} = {port} is one of them; choose others, such as "
                        "policy.port=8100"
                    )
        return self

    @model_validator(mode="after")
    def _shuffled_rewards_are_all_there_is(self) -> Settings:
        if self.ablation.kind == "shuffled_rewards" and self.turns.credited:
            raise ValueError(
                "ablation.kind 'shuffled_rewards' must not learn, but turns.search_gain, search_loss or search_cost "
                "would teach it what its own searches brought; set them to 0"
            )
        return self

    @model_validator(mode="after")
    def _older_episodes_are_corrected(self) -> Settings:
        grpo, staleness = self.grpo, self.trainer.max_staleness
        if staleness and grpo.straggler_share:
            raise ValueError(
                f"grpo.straggler_share cuts what a step waits for, but with trainer.max_staleness = {staleness} no "
                "step waits for the last episodes; set one of the two to 0"
            )
        if staleness and grpo.importance_correction == "tis" and grpo.tis_cap is None:
            raise ValueError(
                f"trainer.max_staleness = {staleness} trains on episodes of older weights, which needs a bound on the "
                "importance weights: set grpo.tis_cap=2, or choose another grpo.importance_correction"
            )
        return self

    @model_validator(mode="after")
    def _episode_fits_the_context(self) -> Settings:
        if self.episode.max_tokens >= self.model.max_model_len:
            raise ValueError(
                f"episode.max_tokens ({self.episode.max_tokens}) must be below model.max_model_len "
                f"({self.model.max_model_len}), which also holds the prompt"
            )
        return self

    @property
    def run_dir(self) -> Path:
        return self.paths.runs / self.run

    @property
    def index_dir(self) -> Path:
        return self.paths.data / "indexes" / self.corpus.index
