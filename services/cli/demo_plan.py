"""Fits the demo to the machine: how long it will take is measured in its first seconds, and told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from research.assets import local_checkpoint
from research.clients import PolicyClient
from research.episode import Sampling
from research.settings import Settings
from services.process import stopping
from services.trainer.forecast import Speeds, forecast, minutes
from services.trainer.learner import Learner
from services.trainer.record import RunRecord
from services.trainer.sequences import TrainingSequence
from services.web.auth import API_KEY_VARIABLE, environment_secret

BUDGET_SECONDS = 20 * 60
# A forecast may be short by so much.
_MARGIN = 1.1
# For the answer at the end, and the end.
_RESERVE_SECONDS = 20
# Shares of the preset's questions of an evaluation, steps, and questions a step, from all to the least that shows a
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
_FITTED = ("grpo", "evaluation")
_REQUESTS, _NEW_TOKENS = 32, 32


def planned(settings: Settings, arguments: Sequence[str], started: float, console: Console) -> Settings:
    """The settings of the demo on this machine; says how long it will take. The policy must be up.

    A demo that goes on keeps the size that it began with, and one whose size was given on the command line is not
    fitted.

    Args:
        arguments: of the command line.
        started: when the demo was started, by `time.monotonic`.
    """
    if (begun := _begun(settings)) is not None:
        return begun
    speeds = Speeds(_learner_speed(settings), stopping.run(_policy_speed(settings)))
    whole = forecast(settings, speeds)
    rates = f"learner {speeds.learner:.0f} and policy {speeds.policy:.0f} tokens per second"
    if whole is None:
        console.print(f"this machine: {rates}", highlight=False)
        return settings
    if any(argument.startswith(tuple(f"{section}." for section in _FITTED)) for argument in arguments):
        console.print(f"this machine: {rates}; the run will take {minutes(whole)}", highlight=False)
        return settings
    left = BUDGET_SECONDS - (time.monotonic() - started) - _RESERVE_SECONDS
    fitted, seconds = fit(settings, speeds, left)
    size = f"{fitted.grpo.steps} steps of {fitted.grpo.questions_per_step * fitted.grpo.group_size} episodes"
    console.print(f"this machine: {rates}; the run will take {minutes(seconds)}", highlight=False, soft_wrap=True)
    if fitted is not settings:
        console.print(
            f"to end within {BUDGET_SECONDS // 60} minutes it has {size} and evaluations of "
            f"{fitted.evaluation.per_kind} questions; whole, with grpo.steps={settings.grpo.steps} on the command "
            f"line, it would take {minutes(whole)}",
            highlight=False,
            soft_wrap=True,
        )
    return fitted.model_copy(update={"grpo": fitted.grpo.model_copy(update={"minutes": left / 60})})


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


def _begun(settings: Settings) -> Settings | None:
    """The settings with the size that this run was begun with, if it was."""
    try:
        former = json.loads((RunRecord(settings.run_dir).directory / "config.json").read_text(encoding="utf-8"))
        size = {section: former[section] for section in _FITTED}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Settings.model_validate(settings.model_dump() | size)


async def _policy_speed(settings: Settings) -> float:
    """Tokens a second of a burst, after a first one that warms the server up."""
    key = environment_secret(API_KEY_VARIABLE)
    async with PolicyClient(settings.trainer.policy_urls[0], api_key=key) as policy:

        async def burst(first: int) -> float:
            started = time.perf_counter()
            made = await asyncio.gather(
                *(
                    policy.generate([first + 41 * request + i for i in range(72)], _NEW_TOKENS, Sampling(1.0))
                    for request in range(_REQUESTS)
                )
            )
            return sum(len(each.token_ids) for each in made) / (time.perf_counter() - started)

        await burst(2_000)
        return await burst(8_000)


def _learner_speed(settings: Settings) -> float:
    """Tokens a second of the second update of a learner that is thrown away; in a thread, as torch's threads are."""
    found: list[float] = []

    def measure() -> None:
        learner = Learner(settings, local_checkpoint(settings.model.name, settings.paths.data))
        learner.prepare_thread()
        few = [_made_up(number) for number in range(4)]
        for batch in (few[:1], few):
            started = time.perf_counter()
            learner.grpo_update(batch)
            found.append(sum(len(each.token_ids) for each in batch) / (time.perf_counter() - started))

    measuring = threading.Thread(target=measure, name="learner", daemon=True)
    measuring.start()
    measuring.join()
    return found[-1]


def _made_up(number: int) -> TrainingSequence:
    """As long as an episode, and a third of it sampled: the time does not depend on what it says."""
    ids = [1000 + (number * 7919 + position * 31) % 40000 for position in range(245)]
    positions = [position for position in range(75, 245) if position % 5 < 2]
    return TrainingSequence(ids, positions, [-1.0] * len(positions), 1.0)
