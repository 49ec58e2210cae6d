"""Machines by stated assumptions: the two cores of the built-in run, and GPUs by the arithmetic of `research plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from apps.plan.estimate import GB, Assumptions, Fleet, plan
from apps.plan.shapes import shape_of
from benchmarks.simulation.settings import LearnerRates, Machines, ServerRates
from research.settings import Settings

# vLLM with the built-in model in bf16 on two cores with AVX-512: 35, 189 and 303 tokens/s with 1, 8 and 32 requests
# (docs/results/machines.md) lie on iteration + per_sequence * running. Prefill is assumed. All of an episode's keys and
# values fit, and vLLM's block on a CPU is 128 tokens. `calibrated` multiplies all three times.
CPU_SERVER = ServerRates(0.026, 0.0025, 0.0005, sequences=64, kv_tokens=90_000, block=128)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the arithmetic of a plan does not have.

    Attributes:
        searches_per_second: of one retriever: E5-small on two threads, 10,033 passages (docs/results/retriever.md).
        search: seconds of a search that waits for nobody; as in the issue's middle case.
        coordination: seconds of the trainer's event loop per turn: 3 ms of tokenizing a result, 1 ms of HTTP (trainer
            notes, section 2). Journal and record, 12 ms more before they went to a thread, are not in it.
        pause: share of publishing in which servers stand still: 3 s of 15 to 20 (trainer notes, section 3).
        block: vLLM's on GPUs, in tokens.
    """

    searches_per_second: float = 574
    search: float = 0.05
    coordination: float = 0.004
    pause: float = 0.2
    block: int = 16


def gpu_machines(
    settings: Settings,
    trainer: Fleet,
    policy: Fleet,
    assumed: Assumptions,
    around: Surroundings,
) -> Machines:
    """Machines as `research plan` sees them: `policy` in servers of `policy.tensor_parallel_size` GPUs.

    Raises AssetError if the model is neither here nor known.
    """
    shape = shape_of(settings)
    planned = plan(settings, shape, trainer, policy, replace(assumed, trained=1.0))
    episodes = settings.grpo.questions_per_step * settings.grpo.group_size
    per_server = settings.policy.tensor_parallel_size
    read = per_server * policy.gpu.bandwidth * GB * assumed.bandwidth
    learner_tokens = settings.optimizer.micro_batch_tokens * trainer.count
    return Machines(
        server=ServerRates(
            iteration=2 * shape.parameters / read,
            per_sequence=planned.tokens / episodes / 2 * shape.kv_bytes_per_token / read,
            prefill=2 * shape.parameters / (per_server * policy.gpu.tflops * 1e12 * assumed.prefill_flops),
            sequences=settings.policy.max_num_seqs,
            kv_tokens=int(planned.policy_memory["keys and values"] * GB / shape.kv_bytes_per_token),
            block=around.block,
        ),
        servers=policy.count // per_server,
        learner=LearnerRates(
            token=planned.seconds["update"] / planned.tokens,
            quantum=learner_tokens,
            publish=planned.seconds["publish"],
            pause=around.pause * planned.seconds["publish"],
            checkpoint=planned.disk["checkpoints"] / (settings.checkpoints.keep + 1) / assumed.disk,
            checkpoint_interval=settings.checkpoints.interval,
        ),
        searches_per_second=around.searches_per_second,
        search=around.search,
        coordination=around.coordination,
    )


def cpu_machines(speed: float, token: float, publish: float) -> Machines:
    """Two cores that policy and learner share, as they are while one of them waits for the other.

    Args:
        speed: what the times of `CPU_SERVER` are multiplied by.
        token: seconds of the learner per token.
        publish: seconds.
    """
    server = replace(
        CPU_SERVER,
        iteration=speed * CPU_SERVER.iteration,
        per_sequence=speed * CPU_SERVER.per_sequence,
        prefill=speed * CPU_SERVER.prefill,
    )
    # Recorded searches include their wait, and the entries of metrics.jsonl no checkpoints.
    return Machines(
        server=server,
        servers=1,
        learner=LearnerRates(token, 1, publish, publish, 0.0, 1),
        searches_per_second=math.inf,
        search=None,
        coordination=0.0,
        shared=True,
    )
