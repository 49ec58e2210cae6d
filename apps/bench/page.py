"""The episodes of the bench as one HTML page: each question with the episode of every strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.inspect.page import as_json, write_frame
from research.bench.jsonl import read_lines
from research.bench.runs import BenchRun

_MOST = 3000  # episodes; a larger page is slow to open


def write_bench_page(runs: Sequence[BenchRun], path: Path) -> None:
    """Write the page; if there are too many episodes, only the first questions of each set."""
    shared = max(1, _MOST // max(1, len(runs)))
    names = _names(runs)
    episodes = []
    for run, name in zip(runs, names, strict=True):
        # In the order of the questions' ids, which does not depend on which answer came first.
        shown = sorted(str(record["id"]) for record in run.records)[:shared]
        places = {identifier: place for place, identifier in enumerate(shown)}
        whole = (record for _, record in read_lines(run.path) if str(record.get("id")) in places)
        written = {places[str(record["id"])]: as_json(_episode(run, name, places, record)) for record in whole}
        episodes += [written[place] for place in sorted(written)]
    left_out = sum(len(run.records) for run in runs) - len(episodes)
    about = {
        "name": " · ".join(dict.fromkeys(run.label for run in runs)),
        "model": ", ".join(dict.fromkeys(str(run.conditions["model"]) for run in runs)),
        "earned": "F1",
        "logprob_scale": 1,
        "more": f"The first {shared} questions of each; the records hold {left_out} more episodes." * bool(left_out),
        "problems": [],
    }
    write_frame(path, about, None, episodes)


def _names(runs: Sequence[BenchRun]) -> list[str]:
    """As short as possible: directory and set appear only if there are several."""
    several = [len({getattr(run, part) for run in runs}) > 1 for part in ("label", "set")]
    return [
        " ".join([*(part for part, needed in zip((run.label, run.set), several, strict=True) if needed), run.strategy])
        for run in runs
    ]


def _episode(run: BenchRun, name: str, places: Mapping[str, int], record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "step": None,
        "evaluation": name,
        "group": None,
        "position": places[str(record["id"])],
        "id": f"{run.set}/{record['id']}",  # ids are not unique beyond their set
        "question": record["question"],
        "gold": record["gold"],
        "kind": record["kind"],
        "answer": record["answer"],
        "outcome": _outcome(record),
        "reward": record["f1"],
        "em": record["em"],
        "f1": record["f1"],
        "fault": record["format_fault"],
        "why": _in_words(run, record),
        "training": None,
        "advantage": None,
        "trained": None,
        "rewards": None,
        "stop": record["stop_reason"],
        "searches": record["searches"],
        "corrected": 0,
        "steps": [{"kind": step["kind"], "text": step["text"]} for step in record["trace"]],
        "seconds": [round(record["seconds"]["generate"], 2), round(record["seconds"]["search"], 2)],
        "written": record["sampled_tokens"],
        "read": record["read_tokens"],
        "versions": record["weight_versions"],
        "tokens": None,
    }


def _outcome(record: Mapping[str, Any]) -> str:
    if record["f1"] > 0:
        return "exact" if record["em"] else "partial"
    return "format" if record["format_fault"] else "wrong"


def _in_words(run: BenchRun, record: Mapping[str, Any]) -> str:
    """The score, the format fault if there is one, and the judge's verdict."""
    if not record["answer"]:
        said = "no answer"
    else:
        said = "exact match" if record["em"] else f"F1 {record['f1']:.2f}" if record["f1"] else "wrong answer"
    if fault := record["format_fault"]:
        said += f"; bad format: {fault}"
    if run.judge and record["answer"]:
        verdict = run.verdict(record)
        judged = f"{'right' if verdict.correct else 'wrong'} ({verdict.reason})" if verdict else "no verdict, it failed"
        said += f"; the judge: {judged}"
    return said
