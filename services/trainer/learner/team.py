"""A learner in several processes, led by rank 0 as if it were one.

Rank 0 calls a `Team` as it would a `Learner`; each call goes to the others as an order first, and all then do the same
together. The others `follow`. An order is JSON: the name of one of `ORDERS` and its arguments.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor

from research.errors import ResearchError, TrainingError
from research.model_paths import local_checkpoint
from research.settings import Settings
from services.trainer.learner.grpo import UpdateReport
from services.trainer.learner.learner import Learner
from services.trainer.model.batching import TrainingSequence
from services.trainer.parallel.learner_watch import LearnerWatch
from services.trainer.parallel.ranks import Ranks

logger = logging.getLogger(__name__)

_END = "end"


class Team:
    """The learner of every rank, as one; only rank 0 has it."""

    def __init__(self, learner: Learner, ranks: Ranks) -> None:
        self._learner = learner
        self._ranks = ranks

    @property
    def updates(self) -> int:
        """Updates that were made."""
        return self._learner.updates

    @property
    def reference_changes(self) -> int | None:
        """As `Learner.reference_changes`."""
        return self._learner.reference_changes

    @property
    def watch(self) -> LearnerWatch:
        """As `Learner.watch`, of this rank; a rank that hangs makes all others wait, so it shows here, too."""
        return self._learner.watch

    def set_updates(self, updates: int) -> None:
        self._together("set_updates", updates)

    def break_off(self) -> None:
        """From another thread: abort the update under way before its next micro-batch; no update follows."""
        self._learner.break_off()

    def set_torch_threads(self) -> None:
        """Set torch's threads for the calling thread; the others have set theirs."""
        self._learner.set_torch_threads()

    def logprobs(self, sequences: Sequence[TrainingSequence]) -> list[list[float]]:
        """As `Learner.logprobs`."""
        found: list[list[float]] = self._together("logprobs", sequences)
        return found

    def grpo_update(self, sequences: Sequence[TrainingSequence], step: int | None = None) -> UpdateReport | None:
        """As `Learner.grpo_update`."""
        report: UpdateReport | None = self._together("grpo_update", sequences, step)
        return report

    def supervised_update(self, sequences: Sequence[TrainingSequence], learning_rate: float, phase: str) -> float:
        """As `Learner.supervised_update`."""
        loss: float = self._together("supervised_update", sequences, learning_rate, phase)
        return loss

    def end_sft(self) -> None:
        """As `Learner.end_sft`."""
        self._together("end_sft")

    def save(self, directory: Path) -> None:
        """As `Learner.save`."""
        self._together("save", directory)

    def save_reference(self, directory: Path) -> None:
        """As `Learner.save_reference`."""
        self._together("save_reference", directory)

    def load(self, directory: Path, reference: Path) -> None:
        """As `Learner.load`."""
        self._together("load", directory, reference)

    def write_weights(self, base: Path, directory: Path) -> None:
        """As `Learner.write_weights`; watched, as this is called from other threads than the learner's."""
        with self.watch.at_work():
            self._together("write_weights", base, directory)

    def gather_weights(self, base: Path) -> dict[str, Tensor]:
        """As `Learner.gather_weights`; watched, as `write_weights`."""
        with self.watch.at_work():
            gathered: dict[str, Tensor] = self._together("gather_weights", base)
        return gathered

    def close(self) -> None:
        """End the run for the others."""
        if not self._ranks.is_alone:
            with suppress(RuntimeError):  # they may be gone
                self._ranks.tell(orjson.dumps([_END, []]))
                self._ranks.confirm_end()

    def _together(self, name: str, *arguments: Any) -> Any:
        try:
            with self._ranks.naming_the_lost(name):
                if not self._ranks.is_alone:
                    self._ranks.tell(orjson.dumps([name, [_as_json(argument) for argument in arguments]]))
                return _do(self._learner, name, arguments)
        except RuntimeError as error:
            # Such as memory of a GPU that ran out: the others are in the middle of the same, and wait.
            if self._ranks.heart is not None and not isinstance(error, ResearchError):
                self._ranks.heart.fall_silent()
            raise


def load_together(settings: Settings, ranks: Ranks) -> Learner:
    """The learner of this rank, if every rank could load its own; raises what went wrong, on every rank."""
    # A learner is in reference cycles, and the next one needs the memory of the one before it.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    loaded: list[Learner] = []
    ranks.together(
        lambda: loaded.append(Learner(settings, local_checkpoint(settings.model.name, settings.paths.data), ranks))
    )
    return loaded[0]


def follow(learner: Learner, ranks: Ranks) -> bytes | None:
    """Do what rank 0 orders until the run ends; raises TrainingError if another process is lost.

    Returns what rank 0 said instead of an order, as it does if its run failed before it could end it; else None.
    """
    learner.set_torch_threads()
    while True:
        with ranks.naming_the_lost("wait for orders"):
            text = ranks.tell(None)
        if not text.startswith(b"["):
            return text
        name, arguments = orjson.loads(text)
        if name == _END:
            with suppress(RuntimeError):  # rank 0 has waited long enough
                ranks.confirm_end()
            return None
        with ranks.naming_the_lost(name):
            try:
                _do(learner, name, _from_json(name, arguments))
            except TrainingError as error:
                # Rank 0 has the same error, and decides.
                logger.warning("%s: %s", name, error)


def _do(learner: Learner, name: str, arguments: Sequence[Any]) -> Any:
    match name:
        case "set_updates":
            return learner.set_updates(*arguments)
        case "logprobs":
            return learner.logprobs(*arguments)
        case "grpo_update":
            return learner.grpo_update(*arguments)
        case "supervised_update":
            return learner.supervised_update(*arguments)
        case "end_sft":
            return learner.end_sft()
        case "save":
            return learner.save(*arguments)
        case "save_reference":
            return learner.save_reference(*arguments)
        case "load":
            return learner.load(*arguments)
        case "write_weights":
            return learner.write_weights(*arguments)
        case "gather_weights":
            return learner.gather_weights(*arguments)
    raise TrainingError(f"an unknown order, {name!r}: do all processes run the same version?")


def _as_json(argument: Any) -> Any:
    if isinstance(argument, Path):
        return str(argument)
    if isinstance(argument, Sequence) and not isinstance(argument, str):
        return [asdict(each) for each in argument]
    return argument


def _from_json(name: str, arguments: list[Any]) -> list[Any]:
    if name in ("logprobs", "grpo_update", "supervised_update"):
        return [[TrainingSequence(**each) for each in arguments[0]], *arguments[1:]]
    if name in ("save", "save_reference", "load", "write_weights", "gather_weights"):
        return [Path(argument) for argument in arguments]
    return arguments
