"""How long a run of the built-in model will take: the tokens of its phases, by this machine's tokens per second.

The counts come from recorded runs (docs/results/machines.md); they are rough, and so is the forecast. For other
models the length of an episode is unknown before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from research.settings import Settings
from services.machine.number_formats import NumberFormat
from services.trainer.entry import Entry

BUILTIN_MODEL = "builtin:smollm2-135m-instruct"

# Sampled tokens of a greedy answer: of the untouched model, and once it knows the format; and of a sampled episode.
_UNTOUCHED_TOKENS, _ANSWER_TOKENS, _EPISODE_TOKENS = 25, 65, 76
# Tokens that the learner computes for a trace and for an episode, prompt and results included.
_TRACE_TOKENS, _TRAINED_TOKENS = 215, 245
# Share of groups that carry a signal.
_SIGNAL = 0.6
# Share of the rate of plain generation that is left after prompts, searches, and episodes that end late.
_ROLLOUT_SHARE = 0.72
_PUBLISH_SECONDS, _CHECKPOINT_SECONDS, _OTHER_SECONDS = 1.5, 3.0, 15.0
# Tokens per second of two cores, per GFLOP/s of one matrix product on one thread, where nothing better is known: 350
# and 257 at 117 GFLOP/s in bf16 (Zen 4), 190 and 152 at 80 in float32 (Zen 3).
_LEARNER_PER_GFLOPS, _POLICY_PER_GFLOPS = 3.0, 2.2


@dataclass(frozen=True, slots=True)
class Speeds:
    """This machine's tokens per second: trained (forward and backward), and sampled with 32 requests in flight."""

    learner: float
    policy: float

    @staticmethod
    def guessed(numbers: NumberFormat) -> Speeds | None:
        """From the timed matrix product of the number format; None on a GPU, where none is timed."""
        if numbers.gflops is None:
            return None
        return Speeds(_LEARNER_PER_GFLOPS * numbers.gflops, _POLICY_PER_GFLOPS * numbers.gflops)


def forecast(settings: Settings, speeds: Speeds) -> float | None:
    """Seconds from the first evaluation to the last; None for other models than the built-in one."""
    if settings.model.name != BUILTIN_MODEL or not settings.sft.enabled:
        return None
    grpo = settings.grpo
    asked = _questions(settings)
    rounds = sum((1 - _SIGNAL) ** number for number in range(grpo.refill_rounds + 1))
    episodes = grpo.questions_per_step * grpo.group_size * rounds
    trained = grpo.questions_per_step * _SIGNAL * rounds * min(grpo.train_per_group or grpo.group_size, grpo.group_size)
    sampled = asked * (_UNTOUCHED_TOKENS + 2 * _ANSWER_TOKENS) + grpo.steps * episodes * _EPISODE_TOKENS
    learnt = settings.sft.steps * settings.sft.batch_size * _TRACE_TOKENS + grpo.steps * trained * _TRAINED_TOKENS
    saves = 1 + grpo.steps // settings.checkpoints.interval
    return (
        sampled / (speeds.policy * _ROLLOUT_SHARE)
        + learnt / speeds.learner
        + (grpo.steps + 2) * _PUBLISH_SECONDS
        + saves * _CHECKPOINT_SECONDS
        + _OTHER_SECONDS
    )


def seconds_left(settings: Settings, metrics: Sequence[Entry], seconds: Mapping[str, float]) -> float:
    """Seconds that a run under way still needs, by its last steps.

    Args:
        metrics: one entry per finished step; at least one.
        seconds: spent on each phase so far.
    """
    left = settings.grpo.steps - len(metrics)
    return left * step_seconds(metrics) + seconds.get("evaluation", 0.0) / 2


def step_seconds(metrics: Sequence[Entry]) -> float:
    """Mean seconds of the last three steps."""
    return fmean(sum(entry["seconds"].values()) for entry in metrics[-3:])


def minutes(seconds: float) -> str:
    """A duration in words."""
    whole = max(1, round(seconds / 60))
    return f"about {whole} minute{'s' if whole > 1 else ''}"


def _questions(settings: Settings) -> int:
    count = settings.evaluation.per_kind
    return sum(count.values()) if isinstance(count, dict) else 2 * count
