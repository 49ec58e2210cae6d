"""The benchmarks of the paper: their names, where the hub has them, and how many questions the paper asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from research.questions.model import Question


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`name` on the command line, `title` in tables, `source` on the hub, `size`: questions that the paper asked."""

    name: str
    title: str
    source: str
    size: int

    def warning(self, questions: int) -> str | None:
        """The warning for a set of this size; None if it is the paper's."""
        if questions == self.size:
            return None
        return (
            f"{self.title} has {questions} questions here, but the paper asked {self.size}; "
            "figures of other questions are not comparable with the paper's"
        )


_HUB = "hub:RUC-NLPIR/FlashRAG_datasets"
BENCHMARKS = (
    Benchmark("hotpotqa", "HotpotQA", f"{_HUB}:hotpotqa:dev", 7405),
    Benchmark("2wikimultihopqa", "2Wiki", f"{_HUB}:2wikimultihopqa:dev", 12576),
    Benchmark("musique", "MuSiQue", f"{_HUB}:musique:dev", 2417),
    Benchmark("bamboogle", "Bamboogle", f"{_HUB}:bamboogle:test", 125),
)
_WORDS = {"hotpotqa": "hotpot", "2wikimultihopqa": "2wiki", "musique": "musique", "bamboogle": "bamboogle"}


def benchmark_named(name: str) -> Benchmark | None:
    """The benchmark of exactly this name."""
    return next((each for each in BENCHMARKS if each.name == name), None)


def benchmark_of(source: str, questions: Sequence[Question]) -> Benchmark | None:
    """The benchmark of these questions: by the name of the file or set, else of its folder, else by kinds."""
    name = source.lower() if source.startswith("hub:") else PurePath(source).stem.lower()
    named = [benchmark for benchmark in BENCHMARKS if _WORDS[benchmark.name] in name]
    if len(named) == 1:
        return named[0]
    folder = "" if source.startswith("hub:") else PurePath(source).parent.name.lower()
    if beside := next((each for each in BENCHMARKS if folder in (each.name, _WORDS[each.name])), None):
        return beside
    kinds = {question.kind for question in questions}
    if "compositional" in kinds:
        return benchmark_named("2wikimultihopqa")
    if "bridge" in kinds and kinds <= {"bridge", "comparison"}:
        return benchmark_named("hotpotqa")
    if kinds and all(re.fullmatch(r"\dhop\d?", kind) for kind in kinds):
        return benchmark_named("musique")
    return None


def set_name(source: str, benchmark: Benchmark | None) -> str:
    """A directory name for a set: the benchmark's, or that of the file or hub set."""
    if benchmark is not None:
        return benchmark.name
    last = source.rpartition("/")[2] if source.startswith("hub:") else PurePath(source).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or "questions"
