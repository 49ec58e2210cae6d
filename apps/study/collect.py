"""What a study has measured, read from the files of its runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from apps.study.plan import START, PlannedRun, StudyPlan
from research.episode.search_analysis import corrected_queries
from research.episode.serialization import episode_from_dict
from research.questions.model import question_from_dict
from research.questions.sampling import first_of_each_kind
from research.scoring.statistics import Estimate, cluster_bootstrap
from services.trainer.entry import Entry
from services.trainer.evaluation.evaluator import AFTER, BEFORE, SAMPLED, SFT

# Stages in the order of the tables; the last three are the arms after training.
STAGES = ("untouched", "sft", "grpo", "shuffled_rewards", "supervised")
# The groups of the tables, as strata of questions. Comparisons are separate: a guess is right half of the time.
GROUPS = {
    "one-hop": ("one_hop",),
    "multi-hop": ("two_hop", "three_hop"),
    "comparison": ("comparison",),
    "one-hop, new templates": ("one_hop_new_template",),
    "multi-hop, new templates": ("two_hop_new_template", "three_hop_new_template"),
    "comparison, new templates": ("comparison_new_template",),
}


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One greedy answer, or one sampled answer, without its text."""

    stage: str
    seed: int
    question: str
    stratum: str
    entity: str
    em: float
    f1: float
    searches: int
    tokens: int
    well_formed: bool
    truncated: bool
    corrected: bool


@dataclass(frozen=True, slots=True)
class StudyData:
    """All greedy outcomes, the sampled ones before GRPO, and the metrics of each run by arm and seed."""

    outcomes: list[StudyRow]
    sampled: list[StudyRow]
    metrics: dict[tuple[str, int], list[Entry]]
    curves: dict[tuple[str, int], dict[int, list[tuple[str, float]]]]

    def of(self, stage: str, group: str) -> list[StudyRow]:
        return [o for o in self.outcomes if o.stage == stage and o.stratum in GROUPS[group]]

    def seeds(self, stage: str) -> list[int]:
        return sorted({o.seed for o in self.outcomes if o.stage == stage})


def collect(plan: StudyPlan) -> StudyData:
    """Read what the runs have written; unfinished runs count with what they have."""
    outcomes: list[StudyRow] = []
    sampled: list[StudyRow] = []
    metrics: dict[tuple[str, int], list[Entry]] = {}
    curves: dict[tuple[str, int], dict[int, list[tuple[str, float]]]] = {}
    for run in plan.runs:
        if run.arm == START:
            outcomes += _outcomes(plan, run, BEFORE, "untouched")
            outcomes += _outcomes(plan, run, SFT, "sft")
            sampled += _outcomes(plan, run, SAMPLED, "sampled")
        else:
            outcomes += _outcomes(plan, run, AFTER, run.arm)
            metrics[run.arm, run.seed] = plan.record(run).metrics()
            curves[run.arm, run.seed] = _curve(plan, run)
    return StudyData(outcomes, sampled, metrics, curves)


def by_question(outcomes: Iterable[StudyRow]) -> dict[str, tuple[float, str]]:
    """Mean EM over the seeds, and the entity, of each question."""
    found: dict[str, list[float]] = {}
    entities: dict[str, str] = {}
    for outcome in outcomes:
        found.setdefault(outcome.question, []).append(outcome.em)
        entities[outcome.question] = outcome.entity
    return {question: (sum(ems) / len(ems), entities[question]) for question, ems in found.items()}


def em_estimate(outcomes: Iterable[StudyRow]) -> Estimate | None:
    """Mean EM with its interval over entities; None without outcomes."""
    questions = by_question(outcomes)
    if not questions:
        return None
    return cluster_bootstrap([em for em, _ in questions.values()], [entity for _, entity in questions.values()])


def em_difference(later: Iterable[StudyRow], former: Iterable[StudyRow]) -> Estimate | None:
    """The rise in EM, paired over the seeds and questions that both have."""
    first = {(o.seed, o.question): o.em for o in former}
    differences: dict[str, list[float]] = {}
    entities: dict[str, str] = {}
    for outcome in later:
        if (outcome.seed, outcome.question) in first:
            rise = outcome.em - first[outcome.seed, outcome.question]
            differences.setdefault(outcome.question, []).append(rise)
            entities[outcome.question] = outcome.entity
    if not differences:
        return None
    return cluster_bootstrap([sum(d) / len(d) for d in differences.values()], [entities[q] for q in differences])


def _outcomes(plan: StudyPlan, run: PlannedRun, evaluation: str, stage: str) -> list[StudyRow]:
    outcomes = []
    for answer in plan.record(run).answers(evaluation):
        question, episode = question_from_dict(answer["question"]), episode_from_dict(answer["episode"])
        outcomes.append(
            StudyRow(
                stage=stage,
                seed=run.seed,
                question=question.id,
                stratum=question.stratum,
                entity=question.entity or question.id,
                em=answer["score"]["em"],
                f1=answer["score"]["f1"],
                searches=episode.searches,
                tokens=episode.sampled_tokens,
                well_formed=episode.format_fault is None,
                truncated=episode.stop_reason.truncated,
                corrected=corrected_queries(episode, question) > 0,
            )
        )
    return outcomes


def _curve(plan: StudyPlan, run: PlannedRun) -> dict[int, list[tuple[str, float]]]:
    """(stratum, EM) of the questions of the interim evaluations, by the step they were asked after.

    Of the full evaluations before and after, only these questions count, so that a curve covers one set.
    """
    record = plan.record(run)
    steps = {SFT: 0, AFTER: plan.settings.grpo.steps}
    curve = {}
    for name in record.evaluations():
        step = int(name.removeprefix("step-")) if name.startswith("step-") else steps.get(name)
        if step is not None:
            ems = {question_from_dict(a["question"]): a["score"]["em"] for a in record.answers(name)}
            present = {question.stratum for question in ems}
            counts = plan.settings.evaluation.interim_per_kind
            asked = counts if isinstance(counts, int) else {kind: n for kind, n in counts.items() if kind in present}
            chosen = first_of_each_kind(list(ems), asked)
            curve[step] = [(question.stratum, ems[question]) for question in chosen]
    return dict(sorted(curve.items()))
