"""Measures a step: builds its entry of `metrics.jsonl`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import cast

from research.episode.search_analysis import corrected_queries
from research.scoring.signs import signs_of
from services.trainer.entry import Entry, GrpoEntry, Means, RolloutEntry, SupervisedEntry, is_grpo
from services.trainer.groups import Group, Member
from services.trainer.learner.grpo import UpdateReport
from services.trainer.rollout.refill import Sampled
from services.trainer.rollout.versions import Versions

Row = tuple[Group, Member]


def step_metrics(
    step: int,
    version: int,
    groups: Sequence[Group],
    *,
    silent: int,
    infra_errors: int,
    rollout: RolloutEntry,
    update: UpdateReport | None,
) -> GrpoEntry:
    """Means over all sampled episodes of a step, over those of each kind of question, and what the update did.

    The fields are those of `GrpoEntry`; `seconds` are not known yet.
    """
    rows = [(group, member) for group in groups for member in group.members]
    kinds = dict.fromkeys(group.question.kind for group, _ in rows)
    return {
        "step": step,
        "version": version,
        **_means(rows),
        "solved_groups": fmean(any(member.score.em for member in group.members) for group in groups),
        "by_kind": {kind: _means([row for row in rows if row[0].question.kind == kind]) for kind in kinds},
        "stop_reasons": dict(Counter(str(member.episode.stop_reason) for _, member in rows)),
        "silent_groups": silent,
        "infra_errors": infra_errors,
        "infra_share": infra_errors / (len(rows) + infra_errors),
        "rollout": rollout,
        "update": update.as_entry() if update is not None else None,
        "seconds": {},
    }


def rollout_entry(sampled: Sampled, questions: int, versions: Versions, unusable: Counter[str]) -> RolloutEntry:
    """How the groups of a step came about, measured before the weights that they train are published."""
    episodes = [member.episode for group in sampled.groups for member in group.members]
    staleness = [versions.staleness(episode) for episode in episodes]
    return {
        "refill_rounds": sampled.rounds,
        "signal_before": sampled.signal_before / questions,
        "signal_after": sampled.signal_after / questions,
        "unusable": sorted(unusable.elements()),
        "dropped_groups": sampled.dropped,
        "staleness": fmean(staleness),
        "staleness_max": max(staleness),
        "several_versions": fmean(len(episode.weight_versions) > 1 for episode in episodes),
        "branches": sum(episode.branched_from is not None for episode in episodes),
        "copied_tokens": fmean(episode.copied_tokens for episode in episodes),
    }


def supervised_metrics(step: int, version: int, losses: Sequence[float], learning_rate: float) -> SupervisedEntry:
    """The entry of a step of the ablation `supervised`; `seconds` are not known yet."""
    return {
        "step": step,
        "version": version,
        "supervised_steps": len(losses),
        "update": {"loss": fmean(losses), "learning_rate": learning_rate},
        "seconds": {},
    }


def summary_line(entry: Entry, steps: int) -> str:
    """An entry, with its `seconds`, as one line for people."""
    took = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in entry["seconds"].items() if seconds >= 0.5)
    if is_grpo(entry):
        what = (
            f"reward {entry['reward']:.3f}, EM {entry['em']:.3f}, {entry['searches']:.2f} searches, "
            f"{entry['sampled_tokens']:.0f} tokens per episode"
        )
    else:
        loss = entry["update"]["loss"] if entry["update"] else float("nan")
        what = f"{entry['supervised_steps']} supervised steps, loss {loss:.3f} per token"
    return f"step {entry['step']}/{steps}: {what}, version {entry['version']} ({took})"


def _means(rows: Sequence[Row]) -> Means:
    scores = [member.score for _, member in rows]
    episodes = [member.episode for _, member in rows]
    means: Means = {
        "episodes": len(rows),
        "reward": fmean(score.reward for score in scores),
        "em": fmean(score.em for score in scores),
        "f1": fmean(score.f1 for score in scores),
        "well_formed": fmean(episode.format_fault is None for episode in episodes),
        "truncated": fmean(episode.stop_reason.truncated for episode in episodes),
        "searches": fmean(episode.searches for episode in episodes),
        "sampled_tokens": fmean(episode.sampled_tokens - episode.copied_tokens for episode in episodes),
        "corrected": fmean(corrected_queries(member.episode, group.question) > 0 for group, member in rows),
    }
    means.update(cast(Means, signs_of([(group.question, member.episode, member.score) for group, member in rows])))
    if scores[0].terms:
        means["rewards"] = {name: fmean(score.terms[name] for score in scores) for name in scores[0].terms}
    return means
