"""The report of a run, from its files alone: summary.json, a plot and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.atomic_io import atomic_write, write_json
from research.markdown import markdown_table
from services.trainer.entry import GrpoEntry, grpo_entries
from services.trainer.run_dir.run_dir import RunDirectory

_STAGES = ("before", "sft", "after")


def write_report(run_dir: RunDirectory, seconds: dict[str, float], *, minutes: float | None = None) -> Path:
    """Write `summary.json`, `report.md` and `training.png`; returns the path of the summary.

    `minutes`: the `grpo.minutes` that ended the run before all its steps were done.
    """
    metrics = run_dir.metrics()
    sampled = grpo_entries(metrics)
    evaluations = {name: figures for name in _STAGES if (figures := run_dir.evaluation(name)) is not None}
    summary = {
        "steps": run_dir.last_step(),
        "minutes": minutes,
        "reward_per_step": [entry["reward"] for entry in sampled],
        "em_per_step": [entry["em"] for entry in sampled],
        "weight_versions": [entry["version"] for entry in metrics],
        "searches_per_episode": [entry["searches"] for entry in sampled],
        "sampled_tokens_per_episode": [entry["sampled_tokens"] for entry in sampled],
        "mismatch_kl_per_step": [entry["update"]["mismatch_kl"] if entry["update"] else None for entry in sampled],
        "eval": evaluations,
        "seconds": {phase: round(value, 1) for phase, value in seconds.items()},
    }
    _plot(sampled, evaluations, run_dir.directory / "training.png")
    (run_dir.directory / "report.md").write_text(_markdown(summary), encoding="utf-8")
    path = run_dir.directory / "summary.json"
    write_json(path, summary)
    return path


def evaluation_table(evaluations: dict[str, Any]) -> str:
    """EM, F1 and searches of every evaluation, by stage and kind of question."""
    rows = [
        (stage, kind, f"{f['em']:.3f}", f"{f['f1']:.3f}", f"{f['searches']:.2f}", str(f["n"]))
        for stage, kinds in evaluations.items()
        for kind, f in kinds.items()
    ]
    return markdown_table(("stage", "questions", "EM", "F1", "searches", "n"), rows)


def _markdown(summary: dict[str, Any]) -> str:
    phases = [(phase, str(seconds)) for phase, seconds in summary["seconds"].items()]
    return (
        f"# Run of {summary['steps']} steps\n\n"
        "Held-out questions, greedy. `before` is the untouched model, `sft` the model after the supervised "
        "phase, `after` the model after GRPO.\n\n"
        f"{evaluation_table(summary['eval'])}\n\n![training curves](training.png)\n\n"
        f"{markdown_table(('phase', 'seconds'), phases)}\n"
    )


def _plot(metrics: Sequence[GrpoEntry], evaluations: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (reward, searches, held_out) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    steps = [entry["step"] for entry in metrics]
    reward.plot(steps, [entry["reward"] for entry in metrics], marker="o", label="reward")
    reward.plot(steps, [entry["em"] for entry in metrics], marker=".", label="EM")
    reward.set(title="sampled episodes", xlabel="GRPO step", ylim=(0, 1))
    reward.legend()
    searches.plot(steps, [entry["searches"] for entry in metrics], marker="o", color="tab:green")
    searches.set(title="searches per episode", xlabel="GRPO step", ylim=(0, None))
    # Not every evaluation asks every kind: evaluation.per_kind may change between starts.
    kinds = list(dict.fromkeys(kind for figures in evaluations.values() for kind in figures))
    for offset, kind in enumerate(kinds):
        asked = [(index, f[kind]["em"]) for index, f in enumerate(evaluations.values()) if kind in f]
        places = [index + 0.8 * offset / len(kinds) for index, _ in asked]
        bars = held_out.bar(places, [em for _, em in asked], 0.8 / len(kinds), label=kind)
        held_out.bar_label(bars, fmt="%.2f", fontsize=8)
    held_out.set_xticks([i + 0.2 for i in range(len(evaluations))], list(evaluations))
    held_out.set(title="held-out EM (greedy)", ylim=(0, 1))
    if kinds:
        held_out.legend()
    with atomic_write(path) as out:
        figure.savefig(out, format="png", dpi=120)
    plt.close(figure)
