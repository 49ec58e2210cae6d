"""The runs of a study, and how each begins where another ended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from research.config import load_settings
from research.errors import ConfigurationError
from research.settings import Settings
from services.trainer.evaluation.evaluator import BEFORE, SAMPLED, SFT
from services.trainer.run_dir.checkpoints import step_name
from services.trainer.run_dir.references import link_checkpoint
from services.trainer.run_dir.run_dir import FORMER_EVALUATIONS, RunDirectory

Arm = Literal["start", "grpo", "shuffled_rewards", "supervised"]

START: Arm = "start"
_CONTROL_OF: dict[Arm, str] = {
    "start": "none",
    "grpo": "none",
    "shuffled_rewards": "shuffled_rewards",
    "supervised": "supervised",
}
# The phases of a training step; evaluations and checkpoints are not part of "equal wall time".
_TRAINING_PHASES = ("rollout", "update", "publish")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run: `start` is the untouched model and its supervised phase; every other arm continues from there."""

    seed: int
    arm: Arm

    @property
    def name(self) -> str:
        return f"seed-{self.seed}-{self.arm}"


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """The runs of a study, in the order in which they run, and their settings."""

    preset: str
    overrides: tuple[str, ...]
    settings: Settings

    @staticmethod
    def load(preset: str, overrides: Sequence[str]) -> StudyPlan:
        """Raises ConfigurationError if the settings are invalid or the study has nothing to compare."""
        settings = load_settings(preset, list(overrides))
        if not settings.sft.enabled and "supervised" in settings.study.arms:
            raise ConfigurationError("study.arms: 'supervised' continues the supervised phase; set sft.enabled=true")
        arms, seeds = settings.study.arms, settings.study.seeds
        if "supervised" in arms and "grpo" not in arms[: arms.index("supervised")]:
            raise ConfigurationError(
                "study.arms: 'supervised' gets the wall time that 'grpo' took; name 'grpo' before it"
            )
        if len(set(arms)) < len(arms) or len(set(seeds)) < len(seeds):
            raise ConfigurationError("study.arms and study.seeds: each value may appear only once")
        if settings.ablation.kind != "none":
            raise ConfigurationError("ablation.kind: remove it; a study sets it for each of study.arms")
        return StudyPlan(preset, tuple(overrides), settings)

    @property
    def directory(self) -> Path:
        return self.settings.run_dir

    @property
    def runs(self) -> list[PlannedRun]:
        """By arm, then by seed: an interrupted study has every seed of the arms that it finished."""
        first, *others = self.settings.study.arms
        together = [PlannedRun(seed, arm) for seed in self.settings.study.seeds for arm in (START, first)]
        return together + [PlannedRun(seed, arm) for arm in others for seed in self.settings.study.seeds]

    def record(self, run: PlannedRun) -> RunDirectory:
        return RunDirectory(self.directory / run.name)

    def settings_of(self, run: PlannedRun) -> Settings:
        """The settings of one run; those of `supervised` are known only once `grpo` of its seed is finished."""
        changes = [f"paths.runs={self.directory}", f"run={run.name}", f"seed={run.seed}"]
        changes.append(f"ablation.kind={_CONTROL_OF[run.arm]}")
        if run.arm == START:
            changes.append("grpo.steps=0")
        if run.arm == "supervised":
            seconds = training_seconds(self.record(PlannedRun(run.seed, "grpo")))
            if seconds <= 0:
                raise ConfigurationError(f"{run.name}: 'grpo' of this seed has no known wall time yet; finish it first")
            changes.append(f"ablation.seconds={seconds:.1f}")
        return load_settings(self.preset, [*self.overrides, *changes])

    def is_finished(self, run: PlannedRun) -> bool:
        grpo = self.settings.grpo
        return self.record(run).is_finished(0 if run.arm == START else grpo.steps, grpo.minutes)

    def check_same_settings(self) -> None:
        """Raise ConfigurationError if a run was begun with other settings: a study never mixes settings."""
        for run in self.runs:
            if self.record(run).directory.is_dir() and (run.arm != "supervised" or self.is_finished(run)):
                self.record(run).require_same(self.settings_of(run))

    def begin(self, run: PlannedRun) -> None:
        """Give a run that has not begun what precedes it: evaluations, and the weights after SFT."""
        target = self.record(run)
        if target.directory.exists():
            return
        partial = target.directory.with_name(target.directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        if run.arm == START:
            # Greedy answers of the untouched model do not depend on the seed.
            others = [self.record(PlannedRun(seed, START)) for seed in self.settings.study.seeds]
            if source := next((other for other in others if other.answers(BEFORE)), None):
                _link_evaluations(source, partial, [BEFORE])
        else:
            source = self.record(PlannedRun(run.seed, START))
            if not (source.checkpoints_dir / step_name(0)).is_dir():
                raise ConfigurationError(
                    f"{run.name} cannot begin: the weights after SFT were deleted when the study finished; "
                    "give a new study another name with run=…"
                )
            _link_evaluations(source, partial, [BEFORE, SFT, SAMPLED])
            checkpoint = source.checkpoints_dir / step_name(0)
            link_checkpoint(checkpoint, partial / "checkpoints")
        if partial.exists():
            partial.rename(target.directory)

    def tidy(self) -> None:
        """Delete checkpoints (a gigabyte each) that no run will start or continue from."""
        for run in self.runs:
            arms = [PlannedRun(run.seed, arm) for arm in self.settings.study.arms]
            needed = arms if run.arm == START else [run]
            if all(self.is_finished(each) for each in needed):
                shutil.rmtree(self.record(run).checkpoints_dir, ignore_errors=True)


def training_seconds(record: RunDirectory) -> float:
    """Wall time of the steps of a run, without evaluations and checkpoints."""
    return sum(float(entry["seconds"].get(phase, 0)) for entry in record.metrics() for phase in _TRAINING_PHASES)


def _link_evaluations(source: RunDirectory, target: Path, names: Sequence[str]) -> None:
    (target / "evaluations").mkdir(parents=True)
    for name in [*names, *(FORMER_EVALUATIONS[name] for name in names if name in FORMER_EVALUATIONS)]:
        for file in sorted(source.directory.glob(f"evaluations/{name}.*")):
            os.link(file, target / "evaluations" / file.name)
