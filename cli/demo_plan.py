"""Fits the demo to the machine: measures its speed before training begins, and prints how long the run will take."""

from __future__ import annotations

import asyncio
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

from rich.console import Console

from research.clients import PolicyClient
from research.config import load_settings
from research.episode.agent import Sampling
from research.model_paths import local_checkpoint
from research.settings import Settings
from services.process import stopping
from services.trainer.learner.learner import Learner
from services.trainer.model.batching import TrainingSequence
from services.trainer.model.memory import keep_freed_memory
from services.trainer.run_dir.run_dir import CONFIG
from services.trainer.run_dir.size import with_written_size, write_size
from services.trainer.telemetry.forecast import Speeds, forecast, minutes
from services.web.auth import API_KEY_VARIABLE, environment_secret

BUDGET_SECONDS = 20 * 60
# Safety factor: a forecast may be too short by this much.
_MARGIN = 1.1
# For the final answer and the shutdown.
_RESERVE_SECONDS = 20
# The least time for training, however long the preparation took.
_MIN_SECONDS = 120.0
# Shares of the preset's evaluation questions, steps, and questions per step, from all to the least that still shows a
# before, an after and an answer.
_SHAPES = (
    (1.0, 1.0, 1.0),
    (1.0, 1.0, 0.75),
    (0.5, 1.0, 0.75),
    (0.5, 0.75, 0.75),
    (0.5, 0.75, 0.5),
    (0.5, 0.5, 0.5),
    (0.25, 0.5, 0.5),
    (0.25, 0.25, 0.5),
    (0.25, 0.25, 0.25),
)
_REQUESTS, _NEW_TOKENS = 32, 32
# The best of so many counts: other work of a moment must not make the whole demo smaller, and a run that is too large
# ends by its minutes anyway.
_TRIES = 4


def plan(settings: Settings, preset: str, started: float, console: Console) -> None:
    """Print how long the demo will take on this machine, and record in its run the size that ends in time.

    The policy must be up. A resumed demo keeps the size that it began with; a size given by the user is not fitted.

    Args:
        preset: the source of the settings.
        started: when the demo was started, by `time.monotonic`.
    """
    if (settings.run_dir / CONFIG).exists():
        fitted = with_written_size(settings)
        console.print(f"resuming {settings.run_dir}: {_size(fitted)}", highlight=False, soft_wrap=True)
        return
    speeds = Speeds(_learner_speed(settings), stopping.run(_policy_speed(settings)))
    whole = forecast(settings, speeds)
    rates = f"this machine: learner {speeds.learner:.0f} and policy {speeds.policy:.0f} tokens per second"
    given = _sizes(settings) != _sizes(load_settings(preset, environment=False))
    if whole is None or given:
        about = f"; the run will take {minutes(whole)}" if whole else ""
        console.print(f"{rates}{about}", highlight=False)
        return
    left = max(_MIN_SECONDS, BUDGET_SECONDS - (time.monotonic() - started) - _RESERVE_SECONDS)
    fitted, seconds = fit(settings, speeds, left)
    console.print(f"{rates}; the run will take {minutes(seconds)}", highlight=False, soft_wrap=True)
    if fitted is not settings:
        console.print(
            f"to end within {BUDGET_SECONDS // 60} minutes it runs {_size(fitted)}; the full size, with "
            f"grpo.minutes={whole * _MARGIN / 60:.0f} on the command line, would take {minutes(whole)}",
            highlight=False,
            soft_wrap=True,
        )
    write_size(fitted.model_copy(update={"grpo": fitted.grpo.model_copy(update={"minutes": left / 60})}))


def _size(settings: Settings) -> str:
    episodes = settings.grpo.questions_per_step * settings.grpo.group_size
    asked = settings.evaluation.per_kind
    return f"{settings.grpo.steps} steps of {episodes} episodes, evaluations of {asked} questions"


def _sizes(settings: Settings) -> tuple[object, ...]:
    grpo = settings.grpo
    return grpo.steps, grpo.questions_per_step, grpo.minutes, settings.evaluation.per_kind


def fit(settings: Settings, speeds: Speeds, left: float) -> tuple[Settings, float]:
    """The largest size whose forecast ends within `left` seconds (else the smallest), and its forecast."""
    for shape in _SHAPES:
        fitted = settings if shape == _SHAPES[0] else _shaped(settings, *shape)
        seconds = forecast(fitted, speeds) or 0.0
        if seconds * _MARGIN <= left:
            break
    return fitted, seconds


def _shaped(settings: Settings, asked: float, steps: float, questions: float) -> Settings:
    per_kind = settings.evaluation.per_kind
    fewer: Any = (
        {kind: max(1, round(count * asked)) for kind, count in per_kind.items()}
        if isinstance(per_kind, dict)
        else max(1, round(per_kind * asked))
    )
    size = {
        "steps": max(1, round(settings.grpo.steps * steps)),
        "questions_per_step": max(1, round(settings.grpo.questions_per_step * questions)),
    }
    return settings.model_copy(
        update={
            "grpo": settings.grpo.model_copy(update=size),
            "evaluation": settings.evaluation.model_copy(update={"per_kind": fewer}),
        }
    )


async def _policy_speed(settings: Settings) -> float:
    """Tokens per second of all servers in the best of some bursts, after a first one that warms them up."""
    key = environment_secret(API_KEY_VARIABLE)
    async with AsyncExitStack() as opened:
        policies = [
            await opened.enter_async_context(PolicyClient(url, api_key=key)) for url in settings.endpoints.policy_urls
        ]

        async def burst(first: int) -> float:
            started = time.perf_counter()
            made = await asyncio.gather(
                *(
                    policy.generate([first + 41 * request + i for i in range(72)], _NEW_TOKENS, Sampling(1.0))
                    for request in range(_REQUESTS)
                    for policy in policies
                )
            )
            return sum(len(each.token_ids) for each in made) / (time.perf_counter() - started)

        await burst(2_000)
        return max([await burst(6_000 + 2_000 * number) for number in range(_TRIES)])


def _learner_speed(settings: Settings) -> float:
    """Tokens per second in the best update of a throwaway learner; in a thread, as torch's setting is per thread."""

    def measure() -> float:
        keep_freed_memory()  # as the run will
        learner = Learner(settings, local_checkpoint(settings.model.name, settings.paths.data))
        learner.set_torch_threads()
        few = [_made_up(number) for number in range(4)]
        learner.grpo_update(few)  # kernels are made for each shape that is new
        tokens = sum(len(each.token_ids) for each in few)
        speeds = []
        for _ in range(_TRIES):
            started = time.perf_counter()
            learner.grpo_update(few)
            speeds.append(tokens / (time.perf_counter() - started))
        return max(speeds)

    with ThreadPoolExecutor(1, thread_name_prefix="learner") as thread:
        speed = thread.submit(measure).result()
    gc.collect()  # the learner is in reference cycles, and the next one needs its memory
    return speed


def _made_up(number: int) -> TrainingSequence:
    """A sequence as long as an episode, a third of it sampled; its content does not affect the time."""
    ids = [1000 + (number * 7919 + position * 31) % 40000 for position in range(245)]
    positions = [position for position in range(75, 245) if position % 5 < 2]
    return TrainingSequence(ids, positions, [-1.0] * len(positions), [1.0] * len(positions))
