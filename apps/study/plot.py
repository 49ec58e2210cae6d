"""The curves of a study in one picture: thick for the mean of the seeds, thin for each seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from apps.study.collect import GROUPS, StudyData
from research.atomic_io import atomic_write

Curve = dict[int, float]

_COLORS = {"grpo": "tab:blue", "shuffled_rewards": "tab:orange", "supervised": "tab:green"}


def plot_study(data: StudyData, path: Path) -> None:
    """Greedy EM of each group of questions, and what the sampled episodes and updates show, by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # 1. What each panel shows.
    panels: list[tuple[str, Callable[[str, int], Curve]]] = [
        *((f"EM, {group} (greedy, held out)", _held_out(data, group)) for group in ("one-hop", "multi-hop")),
        *((f"EM, {group}", _held_out(data, group)) for group in ("one-hop, new templates", "multi-hop, new templates")),
        ("reward of sampled episodes", _metric(data, "reward")),
        ("groups with a right answer", _metric(data, "solved_groups")),
        ("searches per episode", _metric(data, "searches")),
        ("tokens written per episode (without results)", _metric(data, "sampled_tokens")),
        ("entropy, nats per token", _metric(data, "update", "entropy")),
        ("mismatch KL, nats per token", _metric(data, "update", "mismatch_kl")),
        ("badly formed episodes", _metric(data, "well_formed", of=lambda share: 1 - share)),
        ("truncated episodes", _metric(data, "truncated")),
        ("episodes that corrected a query", _metric(data, "corrected")),
        ("episodes sampled again (service failed)", _metric(data, "infra_share")),
    ]
    # 2. One thin line per seed and one thick mean per arm.
    rows = -(-len(panels) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(17, 3.4 * rows), layout="constrained")
    for axis, (title, curve_of) in zip(axes.flat, panels, strict=False):
        for arm, colour in _COLORS.items():
            curves = [curve for (name, seed) in data.metrics if name == arm and (curve := curve_of(arm, seed))]
            for curve in curves:
                axis.plot(list(curve), list(curve.values()), color=colour, alpha=0.3, linewidth=0.9)
            mean = _mean(curves)
            if mean:
                axis.plot(list(mean), list(mean.values()), color=colour, marker=".", label=arm.replace("_", " "))
        axis.set(title=title, xlabel="step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    # 3. Hide unused panels, add one legend, write the file.
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(_COLORS))
    with atomic_write(path) as out:
        figure.savefig(out, format="png", dpi=110)
    plt.close(figure)


def _held_out(data: StudyData, group: str) -> Callable[[str, int], Curve]:
    def curve(arm: str, seed: int) -> Curve:
        return {
            step: fmean(chosen)
            for step, answers in data.curves.get((arm, seed), {}).items()
            if (chosen := [em for stratum, em in answers if stratum in GROUPS[group]])
        }

    return curve


def _metric(data: StudyData, *keys: str, of: Callable[[float], float] = float) -> Callable[[str, int], Curve]:
    def curve(arm: str, seed: int) -> Curve:
        values: dict[int, Any] = {}
        for entry in data.metrics.get((arm, seed), []):
            value: Any = entry
            for key in keys:
                value = value.get(key) if value is not None else None
            if value is not None:
                values[entry["step"]] = of(value)
        return values

    return curve


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean curve, at the steps that every seed has."""
    if not curves:
        return {}
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {step: sum(curve[step] for curve in curves) / len(curves) for step in common}
