"""The arithmetic of a plan: pure functions of a preset, a model's shape, the GPUs and stated assumptions."""

from __future__ import annotations

from dataclasses import dataclass

from apps.plan.shapes import ModelShape
from research.settings import Settings

GB = 1e9
_WEIGHT_FILE_GB = 5.0  # the largest file into which the hub's checkpoints are divided


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a data sheet says: memory in GB, dense bf16 TFLOP/s, memory bandwidth in GB/s."""

    memory: float
    tflops: float
    bandwidth: float


GPUS = {
    "H200": Gpu(141, 989, 4800),
    "H100": Gpu(80, 989, 3350),
    "A100": Gpu(80, 312, 2039),
    "L40S": Gpu(48, 362, 864),
    "A10": Gpu(24, 125, 600),
    "RTX4090": Gpu(24, 165, 1008),
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """So many GPUs of one kind."""

    count: int
    kind: str

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.kind]

    def __str__(self) -> str:
        return f"{self.count} x {self.kind}"


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What nobody knows before the run; the first run of a kind should measure them (metrics.jsonl has all).

    Attributes:
        prompt: tokens of a prompt.
        sampled: tokens that the model writes per episode.
        searches: per episode.
        passage: tokens of a passage as the model sees it.
        trained: share of the groups that have a signal.
        branch: share of its sampled tokens that a branch copies from its root.
        flops: share of the GPU's operations that training uses; `prefill_flops` that prefill does.
        bandwidth: share of the memory bandwidth that decoding uses.
        usable: share of the GPU's memory.
        disk: GB/s to the shared disk; `link` between trainer and policy by NCCL.
    """

    prompt: int = 250
    sampled: int = 430
    searches: float = 4
    passage: int = 145
    trained: float = 0.65
    branch: float = 0.35
    flops: float = 0.40
    prefill_flops: float = 0.50
    bandwidth: float = 0.60
    usable: float = 0.92
    disk: float = 2.0
    link: float = 20.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run takes. Memory in GB per GPU by part, `host_memory` in GB of rank 0's host, times in seconds per step.

    `seconds` are those of a step's phases; `overlapped` says that rollout and update go on at once.
    """

    parameters: int
    trainer_memory: dict[str, float]
    policy_memory: dict[str, float]
    host_memory: dict[str, float]
    trainer_limit: float
    policy_limit: float
    concurrent: int
    tokens: float
    seconds: dict[str, float]
    overlapped: bool
    steps: int
    searches_per_second: float
    disk: dict[str, float]

    @property
    def step_seconds(self) -> float:
        rollout, *rest = self.seconds.values()
        return max(rollout, sum(rest)) if self.overlapped else rollout + sum(rest)

    @property
    def hours(self) -> float:
        return self.steps * self.step_seconds / 3600

    @property
    def trainer_fits(self) -> bool:
        return sum(self.trainer_memory.values()) <= self.trainer_limit

    @property
    def policy_fits(self) -> bool:
        return self.concurrent >= 1


def plan(settings: Settings, shape: ModelShape, trainer: Fleet, policy: Fleet, assumed: Assumptions) -> Plan:
    """Estimate a run.

    Args:
        trainer: the GPUs that the learner is divided over (`trainer.processes` on all hosts).
        policy: the GPUs that sample, each with a server of its own, or `policy.tensor_parallel_size` to a server.
    """
    memory = trainer_memory(settings, shape, trainer.count)
    weights, kv_room = _policy_room(settings, shape, policy.gpu)
    tokens_of_episode = assumed.prompt + assumed.sampled + _result_tokens(settings, assumed)
    per_server = policy.count / settings.policy.tensor_parallel_size
    concurrent = min(settings.policy.max_num_seqs, int(kv_room * GB / (shape.kv_bytes_per_token * tokens_of_episode)))
    groups, with_signal = groups_of_step(settings, assumed.trained)
    episodes, size = groups * settings.grpo.group_size, settings.grpo.group_size
    copied = settings.grpo.branches / size * assumed.branch
    rollout = _rollout_seconds(
        shape, policy, assumed, episodes, tokens_of_episode, max(concurrent, 1), per_server, 1 - copied
    )
    used = groups if settings.grpo.count_silent_groups else with_signal
    trained = used * min(settings.grpo.train_per_group or size, size)
    checkpoint = 12 * shape.parameters / GB
    if settings.lora.rank:
        checkpoint = 12 * shape.lora_parameters(settings.lora.rank) / GB
    kept = {"checkpoints": checkpoint * (settings.checkpoints.keep + 1)}
    if settings.grpo.kl_coefficient > 0 and not settings.lora.rank:
        kept["reference"] = 4 * shape.parameters / GB  # once a run
    published = 2 * shape.parameters / GB
    nccl = settings.trainer.weight_sync == "nccl"
    return Plan(
        parameters=shape.parameters,
        trainer_memory=memory,
        policy_memory={"weights": weights, "keys and values": max(kv_room, 0.0)},
        host_memory=host_memory(settings, shape),
        trainer_limit=assumed.usable * trainer.gpu.memory,
        policy_limit=settings.policy.gpu_memory_utilization * policy.gpu.memory,
        concurrent=concurrent,
        tokens=episodes * tokens_of_episode,
        seconds={
            "rollout": rollout,
            "update": _update_seconds(settings, shape, trainer, assumed, trained * tokens_of_episode),
            "publish": published / (assumed.link if nccl else assumed.disk) * (1 if nccl else 2),
        },
        overlapped=settings.trainer.max_staleness > 0,
        steps=settings.grpo.steps,
        searches_per_second=episodes * assumed.searches / rollout,
        disk=kept | {"published versions": published * 3},
    )


def groups_of_step(settings: Settings, share: float) -> tuple[float, float]:
    """Groups that a step samples, and those of them with a signal, if each has one with probability `share`.

    Each round of a refill samples as many groups as the one before it left silent.
    """
    sampled = sum((1 - share) ** number for number in range(settings.grpo.refill_rounds + 1))
    return settings.grpo.questions_per_step * sampled, settings.grpo.questions_per_step * sampled * share


def host_memory(settings: Settings, shape: ModelShape) -> dict[str, float]:
    """GB that rank 0 needs on its host, by part, beside libraries and episodes.

    Weights that go to the policy by NCCL are copied whole first, in bf16; those that go by disk, a file at a time.
    """
    whole = 2 * shape.parameters / GB
    if settings.trainer.weight_sync == "nccl":
        return {"weights on their way to the policy": whole}
    return {"a file of weights on its way to the disk": min(whole, _WEIGHT_FILE_GB)}


def trainer_memory(settings: Settings, shape: ModelShape, ranks: int) -> dict[str, float]:
    """GB per GPU of the learner, by part.

    States are 16 bytes per parameter (float32 weights, gradients, two moments), divided over the ranks; with LoRA,
    of the factors only, beside frozen weights in bf16, and the reference is the model without them. What a layer
    needs while it computes is whole on every rank: its weights and the next one's in bf16, and its gradient.
    Kept activations are in bf16; with gradient checkpointing only each layer's input, and one layer's whole.
    """
    tokens = max(settings.optimizer.micro_batch_tokens, settings.model.max_model_len)  # the longest episode is a batch
    kv = shape.kv_heads * shape.head_dim
    of_layer = 2 * tokens * (8 * shape.hidden + 2 * kv + 4 * shape.ffn)
    inputs = 2 * tokens * shape.hidden
    checkpointing = settings.optimizer.gradient_checkpointing == "on" or (
        settings.optimizer.gradient_checkpointing == "auto" and ranks > 1
    )
    kept = shape.layers * inputs + of_layer if checkpointing else shape.layers * of_layer
    embedding = shape.vocabulary * shape.hidden
    gathered = 2 * 2 * shape.layer_parameters + 2 * shape.embedding_parameters if ranks > 1 else 2 * shape.parameters
    gradients = 4 * shape.layer_parameters + 4 * shape.embedding_parameters if ranks > 1 else 0
    rank = settings.lora.rank
    states = {"weights, gradients, Adam": 16 * shape.parameters / ranks}
    if rank:
        factors = 16 * shape.lora_parameters(rank)
        states = {"frozen weights": 2 * shape.parameters / ranks, "factors, gradients, Adam": factors / ranks}
        gathered, gradients, embedding = gathered if ranks > 1 else 0, 0, 0
    memory = {
        **states,
        "weights as they compute": gathered,
        "gradients before they are divided": gradients,
        "activations": kept,
        "logits of a chunk": 4 * 4 * 2**26,
        "gradient of the head": 4 * embedding,
    }
    if settings.grpo.kl_coefficient > 0 and not rank:
        memory["reference"] = (2 if ranks > 1 else 4) * shape.parameters / ranks
    return {part: bytes_ / GB for part, bytes_ in memory.items()}


def remedies(settings: Settings, shape: ModelShape, trainer: Fleet, assumed: Assumptions) -> list[str]:
    """Settings that would make a learner fit that does not, each alone; empty if none of them does."""
    limit = assumed.usable * trainer.gpu.memory

    def fits(changed: Settings, ranks: int) -> bool:
        return sum(trainer_memory(changed, shape, ranks).values()) <= limit

    found = []
    optimizer = settings.optimizer
    if optimizer.gradient_checkpointing != "on":
        changed = optimizer.model_copy(update={"gradient_checkpointing": "on"})
        if fits(settings.model_copy(update={"optimizer": changed}), trainer.count):
            found.append("optimizer.gradient_checkpointing=on")
    smaller = optimizer.micro_batch_tokens // 2
    while smaller >= settings.model.max_model_len:
        changed = optimizer.model_copy(update={"micro_batch_tokens": smaller})
        if fits(settings.model_copy(update={"optimizer": changed}), trainer.count):
            found.append(f"optimizer.micro_batch_tokens={smaller}")
            break
        smaller //= 2
    ranks = trainer.count
    while ranks < 1024 and not fits(settings, ranks):
        ranks *= 2
    if fits(settings, ranks):
        found.append(f"{ranks} x {trainer.kind} for the trainer")
    return found


def _result_tokens(settings: Settings, assumed: Assumptions) -> float:
    passage = min(assumed.passage, settings.episode.max_passage_tokens or assumed.passage)
    return assumed.searches * settings.episode.top_k * passage


def _policy_room(settings: Settings, shape: ModelShape, gpu: Gpu) -> tuple[float, float]:
    """GB of a server's weights on each of its GPUs, and GB of all of them that are left for keys and values."""
    servers = settings.policy.tensor_parallel_size
    weights = 2 * shape.parameters / GB / servers
    # A few GB for activations, CUDA graphs and sampling.
    return weights, servers * (settings.policy.gpu_memory_utilization * gpu.memory - weights - 4)


def _rollout_seconds(
    shape: ModelShape,
    policy: Fleet,
    assumed: Assumptions,
    episodes: float,
    tokens: float,
    concurrent: int,
    servers: float,
    own: float,
) -> float:
    """Prefill once, by operations; decode by what each of its steps reads: all weights, and the keys and values.

    Args:
        own: share of the sampled tokens that an episode does not copy from another; the rest counts as prefill.
    """
    gpus_per_server = policy.count / servers
    prefill = 2 * shape.parameters * episodes * (tokens - own * assumed.sampled)
    prefill_seconds = prefill / (policy.count * policy.gpu.tflops * 1e12 * assumed.prefill_flops)
    at_once = min(concurrent, episodes / servers)
    read = 2 * shape.parameters + at_once * tokens / 2 * shape.kv_bytes_per_token
    step = read / (gpus_per_server * policy.gpu.bandwidth * GB * assumed.bandwidth)
    return prefill_seconds + episodes / servers / at_once * own * assumed.sampled * step


def _update_seconds(
    settings: Settings, shape: ModelShape, trainer: Fleet, assumed: Assumptions, tokens: float
) -> float:
    """Six operations per parameter and token, four with LoRA, where frozen weights need no gradient; two more for
    checkpointing, two for a reference."""
    optimizer = settings.optimizer.gradient_checkpointing
    again = 2 if optimizer == "on" or (optimizer == "auto" and trainer.count > 1) else 0
    reference = 2 if settings.grpo.kl_coefficient > 0 else 0
    own = 4 if settings.lora.rank else 6
    passes = settings.grpo.num_iterations * (own + again) + reference
    return passes * shape.parameters * tokens / (trainer.count * trainer.gpu.tflops * 1e12 * assumed.flops)
