"""Runs of the bench on a disk, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from research.bench.records import Records


def record(identifier: str, em: float, **more: Any) -> dict[str, Any]:
    """One answered question; right answers say "right"."""
    return {
        "id": identifier,
        "question": f"What is {identifier}?",
        "kind": "say",
        "entity": "",
        "gold": ["right"],
        "answer": "right" if em else "wrong",
        "em": em,
        "f1": em,
        "cover_em": em,
        "recall": None,
        "stop_reason": "answered",
        "format_fault": None,
        "searches": 2,
        "prompt_tokens": 10,
        "sampled_tokens": 5,
        "result_tokens": 1,
        "read_tokens": 25,
        "seconds": {"generate": 0.25, "search": 0.125, "total": 0.5},
        "weight_versions": ["0"],
        "trace": [{"kind": "answer", "text": "right" if em else "wrong", "passages": []}],
        "passages": [],
        **more,
    }


def write_run(directory: Path, name: str, strategy: str, records: Iterable[dict[str, Any]], **conditions: Any) -> None:
    """Write a run as `research bench` does."""
    records = list(records)
    told = {"strategy": strategy, "set": name, "model": "tiny", "top_k": 5, "asked": len(records), **conditions}
    with Records(directory / name / f"{strategy}.jsonl", told) as file:
        for each in records:
            file.add(each)
