"""Training curves: TensorBoard event files in the run directory, and Weights & Biases on request.

The record is `metrics.jsonl`. A tracker that fails logs one warning and is then skipped; it never ends a run.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from research.settings import Settings
from services.web.auth import environment_secret

logger = logging.getLogger(__name__)

# The default project; wandb's own WANDB_PROJECT overrides it.
_PROJECT = "research"
_WANDB_KEY = "WANDB_API_KEY"
# Evaluations that are not points of the training curve.
_APART = frozenset({"before", "sampled"})


def step_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one entry of `metrics.jsonl` under flat names: `train/reward`, `update/mismatch_kl`, …

    A number at the top is `train/<key>`, a number in a section `<section>/<key>`. The step itself, None, and all
    other values that are not numbers (booleans included) are skipped.
    """
    top = {key: value for key, value in metrics.items() if key != "step" and not isinstance(value, Mapping)}
    sections = {key: value for key, value in metrics.items() if isinstance(value, Mapping)}
    return _flat("train", top) | {
        name: value for section, values in sections.items() for name, value in _flat(section, values).items()
    }


def evaluation_scalars(figures: Mapping[str, Any], prefix: str = "eval") -> dict[str, float]:
    """The numbers of one evaluation, by kind of question, under flat names: `eval/two_hop/em`, …"""
    return _flat(prefix, figures)


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            flat |= _flat(name, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[name] = float(value)
    return flat


class Trackers:
    """Receives the loop's numbers; W&B joins if `wandb` is installed and the environment asks for it.

    It asks with WANDB_API_KEY, or with WANDB_MODE=offline, which needs no key; WANDB_MODE=disabled overrides both.
    """

    def __init__(self, directory: Path, settings: Settings, after_step: int | None) -> None:
        """Open every tracker; W&B may take seconds to answer, so call this off the event loop.

        Args:
            directory: the run directory; TensorBoard files go to `tensorboard`, those of W&B to `wandb` in it.
            settings: shown by W&B as the run's configuration.
            after_step: the step of the checkpoint that the run continues from (None: a new run); later steps are
                purged, because they will be repeated.
        """
        self._sinks: dict[str, _Sink] = {}
        self._open("TensorBoard", lambda: _TensorBoard(directory, (after_step or 0) + 1))
        if _wandb_is_wanted():
            self._open("W&B", lambda: _WeightsAndBiases(directory, settings, after_step or 0))

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of a finished step."""
        self._add(step_scalars(metrics), step)

    def evaluation(self, name: str, step: int, figures: Mapping[str, Any]) -> None:
        """Record the figures of an evaluation, by kind, as they stood after `step` (0: before training).

        `before` and `sampled` have curves of their own (`eval_before/…`): they share step 0 with `sft`, but come
        from the untouched model, or are not greedy.
        """
        self._add(evaluation_scalars(figures, f"eval_{name}" if name in _APART else "eval"), step)

    def close(self) -> None:
        """Write out what is buffered."""
        for name in list(self._sinks):
            self._try(name, self._sinks[name].close)
        self._sinks.clear()

    def _open(self, name: str, make: Callable[[], _Sink]) -> None:
        def open_it() -> None:
            self._sinks[name] = make()

        self._try(name, open_it)

    def _add(self, scalars: Mapping[str, float], step: int) -> None:
        for name, sink in list(self._sinks.items()):
            self._try(name, lambda sink=sink: sink.add(scalars, step))  # type: ignore[misc]

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._sinks.pop(name, None)
            logger.warning("%s is skipped from now on, because it failed: %s", name, error)


class _Sink(Protocol):
    def add(self, scalars: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, directory: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=purge_step)

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        # Each step is visible when it ends, and a killed run keeps it.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """Each start of a run is a W&B run of its own, in a group with the run's name: W&B cannot undo steps."""

    def __init__(self, directory: Path, settings: Settings, after_step: int) -> None:
        if key := environment_secret(_WANDB_KEY):
            os.environ[_WANDB_KEY] = key  # W&B itself knows of no file
            os.environ.pop(f"{_WANDB_KEY}_FILE", None)
        self._run: Any = importlib.import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=str(directory),
            group=settings.run,
            name=f"{settings.run} from step {after_step}",
            config=settings.model_dump(mode="json"),
        )
        # An axis of our own, because W&B's counts calls and refuses to log a step twice (metrics, then evaluation).
        self._run.define_metric("*", step_metric="step")

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({**scalars, "step": step})

    def close(self) -> None:
        self._run.finish()


def _wandb_is_wanted() -> bool:
    mode = os.environ.get("WANDB_MODE")
    if mode == "disabled" or not (environment_secret(_WANDB_KEY) or mode == "offline"):
        return False
    if importlib.util.find_spec("wandb") is None:
        logger.warning("the environment asks for W&B, but wandb is not installed (pip install wandb); W&B is skipped")
        return False
    return True
