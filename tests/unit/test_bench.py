"""Records of the bench: nothing twice, nothing lost, nothing mixed up; and its metrics."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.bench.metrics import cover_exact_match, retrieval_recall
from research.bench.records import Records, differences, read_records
from research.bench.run import ask_all
from research.bench.table import figures_by_kind, paired_difference
from research.episode import Sampling
from research.errors import AssetError, ConfigurationError, ServiceError
from research.questions import Question
from research.reward import exact_match
from research.strategies.outcome import Outcome
from tests.conftest import REPOSITORY

CONDITIONS = {"strategy": "naive", "model": "tiny", "top_k": 5}


@dataclass
class Answers:
    """A strategy that answers with the question's last word; fails for some, a given number of times."""

    failing: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    together: int = 0
    most_together: int = 0

    async def answer(self, question: str, sampling: Sampling) -> Outcome:
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await asyncio.sleep(0)
        self.together -= 1
        self.asked.append(question)
        if self.failing.get(question, 0) > 0:
            self.failing[question] -= 1
            raise ServiceError("the retriever is away")
        return Outcome(question, answer=question.split()[-1], searches=1)


def questions(count: int) -> list[Question]:
    return [Question(f"q{number}", f"Say word{number}", (f"word{number}",), kind="say") for number in range(count)]


def ask(path: Path, strategy: Answers, count: int) -> list[str]:
    async def run() -> list[str]:
        with Records(path, CONDITIONS) as records:
            return await ask_all(strategy, questions(count), records, sampling=Sampling(0.0), concurrency=3)

    return asyncio.run(run())


def test_every_question_is_asked_once_and_scored(tmp_path: Path) -> None:
    strategy = Answers()
    assert ask(tmp_path / "a.jsonl", strategy, 10) == []
    conditions, records = read_records(tmp_path / "a.jsonl")
    assert conditions == CONDITIONS
    assert sorted(record["id"] for record in records) == sorted(f"q{number}" for number in range(10))
    assert all(record["em"] == record["f1"] == record["cover_em"] == 1.0 for record in records)
    assert strategy.most_together == 3


def test_it_goes_on_where_it_was_and_asks_again_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    strategy = Answers({"Say word2": 1})
    assert ask(path, strategy, 4) == ["q2"]
    assert ask(path, strategy, 8) == []
    assert sorted(strategy.asked) == sorted([*(q.text for q in questions(8)), "Say word2"])
    assert len(read_records(path)[1]) == 8


def test_under_other_conditions_it_does_not_go_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    ask(path, Answers(), 2)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="top_k: 5 and 3"):
        Records(path, {**CONDITIONS, "top_k": 3})
    assert path.read_bytes() == before
    assert differences(CONDITIONS, {**CONDITIONS, "seed": 1}) == ["seed: None and 1"]


def test_a_question_is_not_kept_twice(tmp_path: Path) -> None:
    with Records(tmp_path / "a.jsonl", CONDITIONS) as records:
        records.add({"id": "q"})
        with pytest.raises(ValueError, match="already"):
            records.add({"id": "q"})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"id": "q"}\n', "no conditions"),
        ('{"conditions": {}}\n{"id": 1}\nnonsense\n', ":3: not JSON"),
        ('{"conditions": {}}\n[]\n', ":2: not a record"),
        ('{"conditions": {}}\n{"question": "?"}\n', ":2: not a record"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(AssetError, match=named):
        read_records(path)


@given(cut=st.integers(min_value=0, max_value=400))
def test_wherever_a_kill_cuts_the_file_whole_answers_stay(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    with Records(path, CONDITIONS) as records:
        for number in range(5):
            records.add({"id": f"q{number}", "text": "é" * number})
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with Records(path, CONDITIONS) as records:
        assert list(records.done) == [f"q{number}" for number in range(max(0, whole[:cut].count(b"\n") - 1))]
        for number in range(len(records.done), 5):
            records.add({"id": f"q{number}", "text": "é" * number})
    assert path.read_bytes() == whole


CHILD = """
import sys
from pathlib import Path
from research.bench.records import Records
with Records(Path(sys.argv[1]), {"strategy": "naive"}) as records:
    number = len(records.done)
    while True:
        records.add({"id": f"q{number}", "padding": "x" * 5000})
        print(number, flush=True)
        number += 1
"""


def test_killed_again_and_again_nothing_is_lost_and_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    kept = 0
    for _ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        assert child.stdout is not None
        for line in child.stdout:
            kept = int(line) + 1
            if kept % 20 == 0:
                child.send_signal(signal.SIGKILL)
                break
        kept = max([kept, *(int(line) + 1 for line in child.stdout)])
        child.wait()
        with Records(path, {"strategy": "naive"}) as records:
            assert len(records.done) >= kept
    lines = [json.loads(line)["id"] for line in path.read_text().splitlines()[1:]]
    assert lines == [f"q{number}" for number in range(len(lines))]


@pytest.mark.parametrize(
    ("prediction", "gold", "covered"),
    [
        ("It was Vincent van Gogh.", "vincent van gogh", 1.0),
        ("Vincent the Gogh", "Vincent van Gogh", 0.0),
        ("carpet", "car", 0.0),
        ("in 1889, in June", "1889", 1.0),
        ("", "x", 0.0),
        ("x", "the", 0.0),
    ],
)
def test_cover_exact_match_looks_for_whole_words(prediction: str, gold: str, covered: float) -> None:
    assert cover_exact_match(prediction, gold) == covered


@given(prediction=st.text(), gold=st.text())
def test_an_exact_match_is_covered(prediction: str, gold: str) -> None:
    assert cover_exact_match(prediction, gold) >= exact_match(prediction, gold)


def test_recall_counts_each_supporting_title_once() -> None:
    assert retrieval_recall(["a", "a", "c"], ["a", "b"]) == 0.5
    assert retrieval_recall([], ["a"]) == 0.0
    assert retrieval_recall(["a"], []) is None


def record(identifier: str, em: float, entity: str = "", **more: Any) -> dict[str, Any]:
    return {
        "id": identifier,
        "kind": "say",
        "entity": entity,
        "em": em,
        "f1": em,
        "cover_em": em,
        "recall": None,
        "searches": 2,
        "prompt_tokens": 10,
        "sampled_tokens": 5,
        "result_tokens": 1,
        "seconds": {"total": 0.5},
        "stop_reason": "answered",
        **more,
    }


def test_figures_are_means_of_each_kind() -> None:
    records = [record("a", 1.0, recall=0.5), record("b", 0.0, stop_reason="token_limit"), record("c", 1.0, kind="ask")]
    found = figures_by_kind(records)
    assert list(found) == ["ask", "say"]
    assert (found["say"].recall, found["ask"].recall) == (0.5, None)
    assert (found["say"].em.mean, found["say"].em.n, found["ask"].em.mean) == (0.5, 2, 1.0)
    assert (found["say"].searches, found["say"].tokens, found["say"].seconds, found["say"].truncated) == (2, 16, 0.5, 1)


def test_two_runs_are_compared_on_the_questions_that_both_answered() -> None:
    these = [record("a", 1.0), record("b", 1.0), record("c", 0.0), record("x", 0.0)]
    those = [record("c", 0.0), record("a", 0.0), record("b", 1.0), record("y", 1.0)]
    difference = paired_difference(these, those)
    assert (difference.mean, difference.n) == (pytest.approx(1 / 3), 3)
    assert difference.low <= difference.mean <= difference.high
    with pytest.raises(ValueError, match="0 values"):
        paired_difference(these, [])
