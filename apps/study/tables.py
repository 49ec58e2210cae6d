"""The tables of a study's report, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from apps.study.collect import GROUPS, STAGES, StudyData, StudyRow, em_difference, em_estimate
from research.markdown import markdown_table
from research.scoring.evaluate import pass_at_k
from services.trainer.entry import grpo_entries, is_grpo

_COMPARED = (
    ("grpo", "sft", "GRPO against its start"),
    ("grpo", "supervised", "GRPO against the supervised phase continued for the same wall time"),
    ("grpo", "shuffled_rewards", "GRPO against GRPO with shuffled rewards"),
    ("shuffled_rewards", "sft", "shuffled rewards against their start"),
    ("supervised", "sft", "the supervised phase continued against its start"),
)


def em_table(data: StudyData) -> str:
    """EM by stage: mean over seeds with its interval over entities, and each seed."""
    rows = []
    for group in GROUPS:
        questions = len({o.question for stage in STAGES for o in data.of(stage, group)})
        if not questions:
            continue
        cells = []
        for stage in STAGES:
            outcomes = data.of(stage, group)
            estimate = em_estimate(outcomes)
            each = ", ".join(f"{fmean(o.em for o in outcomes if o.seed == s):.2f}" for s in data.seeds(stage))
            cells.append(
                f"**{estimate.mean:.3f}** [{estimate.low:.2f}, {estimate.high:.2f}] ({each})" if estimate else ""
            )
        clusters = len({o.entity for stage in STAGES for o in data.of(stage, group)})
        rows.append([group, str(questions), str(clusters), *cells])
    return markdown_table(("questions", "n", "entities", *STAGES), rows)


def difference_table(data: StudyData) -> str:
    """Paired differences with intervals; a difference whose interval excludes 0 is bold."""
    rows = []
    for group in GROUPS:
        for later, former, what in _COMPARED:
            estimate = em_difference(data.of(later, group), data.of(former, group))
            if estimate is not None:
                mark = "**" if estimate.low > 0 or estimate.high < 0 else ""
                cell = f"{mark}{estimate.mean:+.3f}{mark} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
                rows.append([group, what, cell])
    return markdown_table(("questions", "compared", "EM difference"), rows)


def exploration_table(data: StudyData) -> str:
    """What sampling finds before GRPO: the share of questions that one of the k samples gets right."""
    rows = []
    for group, strata in GROUPS.items():
        chosen = [o for o in data.sampled if o.stratum in strata]
        if chosen:
            rate = pass_at_k((f"{o.seed}/{o.question}", group, o.em) for o in chosen)[group]
            questions = len({(o.seed, o.question) for o in chosen})
            k = len(chosen) // questions
            rows.append([group, f"{fmean(o.em for o in chosen):.3f}", f"{rate:.3f}", str(k), str(questions)])
    return markdown_table(("questions", "one sample", "any of k", "k", "n (seeds together)"), rows)


def updates_table(data: StudyData) -> str:
    """How many updates each run made, on how many tokens."""
    rows = []
    for (arm, seed), entries in data.metrics.items():
        if entries:
            updates = [entry["update"] for entry in entries if entry["update"] is not None]
            sampled = grpo_entries(entries)
            supervised = sum(entry["supervised_steps"] for entry in entries if not is_grpo(entry))
            silent = fmean(entry["silent_groups"] for entry in sampled) if sampled else None
            tokens = sum(update.get("tokens", 0) for update in updates)
            rows.append(
                [arm, str(seed), str(supervised or len(updates)), str(tokens or ""), f"{silent:.1f}" if silent else ""]
            )
    return markdown_table(("arm", "seed", "updates", "sampled tokens trained on", "silent groups per step"), rows)


def behavior_table(data: StudyData) -> str:
    """How the model works at each stage, on greedy held-out episodes."""
    rows = [
        [group, stage, *_behavior(outcomes)]
        for group in GROUPS
        for stage in STAGES
        if (outcomes := data.of(stage, group))
    ]
    head = ("questions", "stage", "F1", "searches", "tokens written", "well formed", "truncated", "corrected a query")
    return markdown_table(head, rows)


def _behavior(outcomes: Sequence[StudyRow]) -> list[str]:
    return [
        f"{fmean(o.f1 for o in outcomes):.3f}",
        f"{fmean(o.searches for o in outcomes):.2f}",
        f"{fmean(o.tokens for o in outcomes):.0f}",
        *(f"{fmean(getattr(o, name) for o in outcomes):.3f}" for name in ("well_formed", "truncated", "corrected")),
    ]
