"""Figures of a run from its records, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from research.bench.runs import BenchRun
from research.episode.agent import StopReason
from research.scoring.statistics import Estimate, cluster_bootstrap, cluster_bootstraps
from research.settings.measuring import PriceConfig

ALL_KINDS = "all"
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class BenchFigures:
    """Figures of one strategy on one kind of question; searches, tokens, seconds and cost are means over the questions.

    `judge` is the share that a judge found correct, None without a judge; the `unjudged` answers, which it failed to
    judge, count as wrong. `recall` is the share of supporting titles that any search found, over the questions where
    they are known. `cost` is in USD, None without a price.
    """

    em: Estimate
    f1: Estimate
    cover_em: Estimate
    judge: Estimate | None
    unjudged: int
    recall: float | None
    searches: float
    read: float
    written: float
    seconds: float
    cost: float | None
    truncated: int
    unanswered: int


def figures_by_kind(run: BenchRun, price: PriceConfig | None = None) -> dict[str, BenchFigures]:
    """Figures of all answers first, then of each kind of question by name, if there is more than one.

    Questions about one entity are not independent, so the intervals resample entities. Empty without answers.
    """
    kinds = sorted({record["kind"] for record in run.records})
    parts = {ALL_KINDS: run.records} if run.records else {}
    if len(kinds) > 1:
        parts |= {kind: [record for record in run.records if record["kind"] == kind] for kind in kinds}
    return {kind: _figures(run, records, price) for kind, records in parts.items()}


def paired_difference(these: Records, those: Records, metric: str = "em") -> Estimate:
    """Mean of (these − those) over the questions that both answered, with its interval.

    Raises ValueError if they have no question in common.
    """
    pairs = answered_by_both(these, those)
    return cluster_bootstrap([a[metric] - b[metric] for a, b in pairs], [_cluster(a) for a, _ in pairs])


def answered_by_both(these: Records, those: Records) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pairs of records of the same question: the same id, text and gold answers."""
    other = {_question(record): record for record in those}
    return [(record, other[key]) for record in these if (key := _question(record)) in other]


def _question(record: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    return str(record["id"]), record["question"], tuple(record["gold"])


def _figures(run: BenchRun, records: Records, price: PriceConfig | None) -> BenchFigures:
    clusters = [_cluster(record) for record in records]
    known = [record["recall"] for record in records if record["recall"] is not None]
    verdicts = [run.verdict(record) for record in records]

    columns = [[record[metric] for record in records] for metric in ("em", "f1", "cover_em")]
    columns.append([float(bool(verdict and verdict.correct)) for verdict in verdicts])
    em, f1, cover_em, judge = cluster_bootstraps(columns, clusters)
    return BenchFigures(
        em=em,
        f1=f1,
        cover_em=cover_em,
        judge=judge if run.verdicts else None,
        unjudged=verdicts.count(None) if run.verdicts else 0,
        recall=fmean(known) if known else None,
        searches=fmean(record["searches"] for record in records),
        read=fmean(record["read_tokens"] for record in records),
        written=fmean(record["sampled_tokens"] for record in records),
        seconds=fmean(record["seconds"]["total"] for record in records),
        cost=fmean(_cost(record, price) for record in records) if price else None,
        truncated=sum(StopReason(record["stop_reason"]).truncated for record in records),
        unanswered=sum(not record["answer"] for record in records),
    )


def _cost(record: Mapping[str, Any], price: PriceConfig) -> float:
    tokens = record["read_tokens"] * price.input + record["sampled_tokens"] * price.output
    return float(tokens / 1e6 + record["searches"] * price.search / 1e3)


def _cluster(record: Mapping[str, Any]) -> str:
    return str(record["entity"] or record["id"])
