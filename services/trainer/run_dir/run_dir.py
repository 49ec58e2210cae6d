"""The files of a run directory: settings, metrics, episodes, evaluations and the summary.

The directory alone is enough to resume, to inspect and to report on a run.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from research.atomic_io import atomic_write, make_directory, write_json
from research.config import recorded_settings
from research.errors import ConfigurationError
from research.scoring.evaluate import Answered, KindFigures, figures_as_dict
from research.settings import Settings
from research.settings.base import Section
from services.trainer.entry import Entry
from services.trainer.groups import Group, TrainingUse
from services.trainer.run_dir.metrics_file import MetricsFile, json_object

CONFIG = "config.json"
_COMPRESSION = 6
_QUESTIONS, _NUMBERS = "question_files", "number_format"
# Settings that follow the machines, or may be raised.
_FREE = frozenset(
    {
        "grpo.steps",
        "grpo.minutes",
        "grpo.service_retries",
        "model.dtype",
        "optimizer.gradient_checkpointing",
        "reward.judge_endpoint",
    }
)
# Sections that may change between the start and a resumption of a run; every other setting defines what the run is.
_CHANGEABLE = frozenset(
    {"paths", "retriever", "policy", "trainer", "endpoints", "checkpoints", "evaluation", "alarms", "study"}
)
_STEP = re.compile(r"step-([0-9]+)")
# Names of evaluations in runs from before 2026-11.
FORMER_EVALUATIONS = {"sft": "warmup"}


logger = logging.getLogger(__name__)


class RunDirectory:
    """Reads and writes the files of one run.

    A line or file that is spoilt, as a power cut or a full disk leaves them, is named in the log and left out.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._metrics = MetricsFile(directory / "metrics.jsonl", self._name)
        self._config = directory / CONFIG
        self._named: set[str] = set()  # what was said to be spoilt

    @property
    def episodes_dir(self) -> Path:
        return self.directory / "episodes"

    @property
    def checkpoints_dir(self) -> Path:
        return self.directory / "checkpoints"

    def open(self, settings: Settings, questions: str = "", numbers: dict[str, Any] | None = None) -> None:
        """Create the directory, or check that it belongs to the same settings and questions (given by a digest).

        `numbers` is recorded: the number format of the machine that the run continues on, and why.

        Raises ConfigurationError that names what has changed since the run was started.
        """
        self.require_same(settings, questions)
        make_directory(self.directory)
        write_json(self._config, settings.model_dump(mode="json") | {_QUESTIONS: questions, _NUMBERS: numbers})

    def require_same(self, settings: Settings, questions: str = "") -> None:
        """Raise ConfigurationError if the run was started with other settings or questions; `open` does so, too."""
        former = recorded_settings(self.directory)
        if former is None:
            return
        current = settings.model_dump(mode="json") | {_QUESTIONS: questions or former.get(_QUESTIONS, "")}
        if differing := _differences(former, current):
            raise ConfigurationError(
                f"{self.directory} was started with other settings ({', '.join(differing)}); "
                "give another name with run=…, or start over with --fresh"
            )

    def is_finished(self, steps: int, minutes: float | None = None) -> bool:
        """Whether a report covers at least this many steps, or those that these `grpo.minutes` allow."""
        summary = self._read_object(self.directory / "summary.json") or {}
        done, allowed = summary.get("steps"), summary.get("minutes")  # the latter is set if they ended the run
        return isinstance(done, int) and bool(
            done >= steps or (minutes is not None and allowed is not None and minutes <= allowed)
        )

    def metrics(self) -> list[Entry]:
        """One entry per finished step whose line is whole; nobody changes them."""
        return self._metrics.entries()

    def last_step(self) -> int:
        """The number of the last finished step in the metrics; 0 if there is none."""
        return max((entry["step"] for entry in self.metrics()), default=0)

    def delete_steps_after(self, step: int) -> None:
        """Delete metrics and evaluations of later steps than the checkpoint's; they will be repeated."""
        self._metrics.keep_up_to(step)
        for path in self.directory.glob("evaluations/*"):
            name = path.name.partition(".")[0]
            interim = _STEP.fullmatch(name)
            if name == "after" or (interim and int(interim[1]) > step):
                path.unlink()

    def write_left_out(self, setting: str, left_out: dict[str, str]) -> None:
        """Record which questions of a set cannot be asked, and why, by id."""
        path = self.directory / "left_out.json"
        write_json(path, (self._read_object(path) or {}) | {setting: left_out})

    def add_metrics(self, entry: Entry) -> None:
        """Append one entry; it is on the disk when this returns."""
        self._metrics.add(entry)

    def write_episodes(self, step: int, groups: Sequence[Group], uses: Sequence[Sequence[TrainingUse]]) -> None:
        """All episodes of a step and how training used each, one JSON object per line, compressed."""
        _write_gzip_lines(
            self.episodes_dir / f"step-{step:06d}.jsonl.gz",
            (
                {"group": group.id, "member": member.place, "question": group.question}
                | {"score": member.score, "episode": member.episode, "training": use}
                for group, own in zip(groups, uses, strict=True)
                for member, use in zip(group.members, own, strict=True)
            ),
        )

    def answers(self, name: str) -> list[dict[str, Any]]:
        """The questions, episodes and scores of an evaluation; none if it was not done or cannot be read."""
        path = self._evaluation_file(name, "jsonl.gz")
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                return [json.loads(line) for line in lines]
        except (OSError, EOFError, ValueError, zlib.error):
            return []

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """The figures of a finished evaluation, by kind; None if there are none that can be read."""
        return self._read_object(self._evaluation_file(name, "json"))

    def evaluations(self) -> dict[str, Any]:
        """All evaluations done so far, oldest first."""
        files = sorted(self.directory.glob("evaluations/*.json"), key=lambda path: path.stat().st_mtime)
        present = {former: name for name, former in FORMER_EVALUATIONS.items()}
        found = ((present.get(path.stem, path.stem), self._read_object(path)) for path in files)
        return {name: figures for name, figures in found if figures is not None}

    def _read_object(self, path: Path) -> dict[str, Any] | None:
        """A JSON object of the record; None if it is absent, or spoilt, which is named."""
        if not path.is_file():
            return None
        if (found := json_object(path.read_bytes())) is None:
            self._name(str(path), "no JSON object")
        return found

    def _name(self, what: str, why: str) -> None:
        if what not in self._named:
            self._named.add(what)
            logger.warning("%s is spoilt (%s) and is left out", what, why)

    def _evaluation_file(self, name: str, suffix: str) -> Path:
        directory = self.directory / "evaluations"
        present = directory / f"{name}.{suffix}"
        former = directory / f"{FORMER_EVALUATIONS.get(name, name)}.{suffix}"
        return present if present.is_file() or not former.is_file() else former

    def write_evaluation(self, name: str, answered: Sequence[Answered], figures: dict[str, KindFigures]) -> None:
        directory = self.directory / "evaluations"
        make_directory(directory)
        write_json(directory / f"{name}.json", figures_as_dict(figures))
        _write_gzip_lines(
            directory / f"{name}.jsonl.gz",
            ({"question": a.question, "score": a.score, "episode": a.episode} for a in answered),
        )


def _differences(former: dict[str, Any], current: dict[str, Any]) -> list[str]:
    differing = []
    for section in sorted(former.keys() | current.keys()):
        if section in _CHANGEABLE or section == _NUMBERS or former.get(section) == current.get(section):
            continue
        new = current.get(section)
        old = former.get(section, {} if isinstance(new, dict) else None)
        if isinstance(old, dict) and isinstance(new, dict):
            old = _defaults(section) | old  # settings that are newer than the run
            differing += [f"{section}.{k}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
        else:
            differing.append(section)
    return [name for name in differing if name not in _FREE]


def _defaults(section: str) -> dict[str, Any]:
    """The defaults of a section, as JSON has them; without settings that have none."""
    fields = Settings.model_fields.get(section)
    model = fields.annotation if fields is not None else None
    if not (isinstance(model, type) and issubclass(model, Section)):
        return {}
    values = {
        name: field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
        if not field.is_required()
    }
    return model.model_construct(**values).model_dump(mode="json", include=set(values))


def _write_gzip_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line; orjson reads dataclasses as they are."""
    make_directory(path.parent)
    with atomic_write(path) as file, gzip.open(file, "wb", compresslevel=_COMPRESSION) as out:
        for record in records:
            out.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
