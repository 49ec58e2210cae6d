"""Figures of a run from its records, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from research.statistics import Estimate, cluster_bootstrap


@dataclass(frozen=True, slots=True)
class BenchFigures:
    """Of one strategy on one kind of question; searches, tokens and seconds are means over the questions.

    `recall` is the share of supporting titles that any search found, over the questions where they are known.
    """

    em: Estimate
    f1: Estimate
    cover_em: Estimate
    recall: float | None
    searches: float
    tokens: float
    seconds: float
    truncated: int


def figures_by_kind(records: Sequence[Mapping[str, Any]]) -> dict[str, BenchFigures]:
    """Figures of each kind of question, in the order of their names; questions about one entity are not independent."""
    kinds = sorted({record["kind"] for record in records})
    return {kind: _figures([record for record in records if record["kind"] == kind]) for kind in kinds}


def paired_difference(
    these: Sequence[Mapping[str, Any]], those: Sequence[Mapping[str, Any]], metric: str = "em"
) -> Estimate:
    """Mean of (these − those) over the questions that both answered, with its interval.

    Raises ValueError if they have no question in common.
    """
    other = {record["id"]: record for record in those}
    pairs = [(record, other[record["id"]]) for record in these if record["id"] in other]
    return cluster_bootstrap([a[metric] - b[metric] for a, b in pairs], [_cluster(a) for a, _ in pairs])


def _figures(records: Sequence[Mapping[str, Any]]) -> BenchFigures:
    clusters = [_cluster(record) for record in records]
    known = [record["recall"] for record in records if record["recall"] is not None]

    def estimate(metric: str) -> Estimate:
        return cluster_bootstrap([record[metric] for record in records], clusters)

    return BenchFigures(
        em=estimate("em"),
        f1=estimate("f1"),
        cover_em=estimate("cover_em"),
        recall=fmean(known) if known else None,
        searches=fmean(record["searches"] for record in records),
        tokens=fmean(
            record["prompt_tokens"] + record["sampled_tokens"] + record["result_tokens"] for record in records
        ),
        seconds=fmean(record["seconds"]["total"] for record in records),
        truncated=sum(record["stop_reason"] in ("token_limit", "search_limit") for record in records),
    )


def _cluster(record: Mapping[str, Any]) -> str:
    return str(record["entity"] or record["id"])
