"""Records of the bench: nothing twice, nothing lost, nothing mixed up; and its metrics."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.bench.metrics import retrieval_recall
from research.bench.records import Records, differences, read_records
from research.bench.run import ask_all
from research.episode.agent import Sampling
from research.errors import AssetError, ConditionsChangedError, ConfigurationError, ContextFullError, ServiceError
from research.questions import Question
from research.scoring.reward import cover_exact_match, exact_match
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


def ask(path: Path, strategy: Answers, count: int) -> dict[str, str]:
    async def run() -> dict[str, str]:
        with Records(path, CONDITIONS) as records:
            return await ask_all(strategy, questions(count), records, sampling=Sampling(0.0), concurrency=3)

    return asyncio.run(run())


def test_every_question_is_asked_once_and_scored(tmp_path: Path) -> None:
    strategy = Answers()
    assert ask(tmp_path / "a.jsonl", strategy, 10) == {}
    conditions, records = read_records(tmp_path / "a.jsonl")
    assert conditions == CONDITIONS
    assert sorted(record["id"] for record in records) == sorted(f"q{number}" for number in range(10))
    assert all(record["em"] == record["f1"] == record["cover_em"] == 1.0 for record in records)
    assert strategy.most_together == 3


def test_it_goes_on_where_it_was_and_asks_again_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    strategy = Answers({"Say word2": 1})
    assert ask(path, strategy, 4) == {"q2": "the retriever is away"}
    assert ask(path, strategy, 8) == {}
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
        ('{"conditions": {}}\n{"id": 1}\nnonsense\n', ":3 is not JSON"),
        ('{"conditions": {}}\n[]\n', ":2 is not a record"),
        ('{"conditions": {}}\n{"question": "?"}\n', ":2 is not a record"),
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
        assert records.done == {f"q{number}" for number in range(max(0, whole[:cut].count(b"\n") - 1))}
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


def test_a_file_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        Records(tmp_path / "a.jsonl", CONDITIONS),
        pytest.raises(ConfigurationError, match="being written by another process"),
    ):
        Records(tmp_path / "a.jsonl", CONDITIONS)


def test_what_no_encoding_holds_is_kept_all_the_same(tmp_path: Path) -> None:
    with Records(tmp_path / "a.jsonl", CONDITIONS) as records:
        records.add({"id": "q", "answer": "broken \udc80 and whole é"})
    assert read_records(tmp_path / "a.jsonl")[1] == [{"id": "q", "answer": "broken \udc80 and whole é"}]


def test_when_nobody_answers_it_gives_up_and_says_why(tmp_path: Path) -> None:
    strategy = Answers(dict.fromkeys((f"Say word{number}" for number in range(5, 100)), 1))
    with pytest.raises(ServiceError, match=r"32 questions in a row .* the retriever is away"):
        ask(tmp_path / "a.jsonl", strategy, 100)
    assert len(read_records(tmp_path / "a.jsonl")[1]) == 5
    assert ask(tmp_path / "a.jsonl", Answers(), 100) == {}


@dataclass
class Versioned:
    """Answers by weights that change after some questions; a question of none is too long for the context."""

    change_after: int

    async def answer(self, question: str, sampling: Sampling) -> Outcome:
        number = int(question.removeprefix("Say word"))
        if number == 0:
            raise ContextFullError("too long")
        return Outcome(question, answer="x", versions=["7" if number < self.change_after else "8"])


def test_answers_of_other_weights_are_refused(tmp_path: Path) -> None:
    async def run(change_after: int) -> None:
        with Records(tmp_path / "a.jsonl", CONDITIONS) as records:
            await ask_all(
                Versioned(change_after), questions(9), records, sampling=Sampling(0.0), concurrency=1, version="7"
            )

    with pytest.raises(ConditionsChangedError, match="weight version 8 answered instead of 7"):
        asyncio.run(run(6))
    kept = read_records(tmp_path / "a.jsonl")[1]
    assert [record["id"] for record in kept] == [f"q{number}" for number in range(6)]
    assert (kept[0]["stop_reason"], kept[0]["answer"]) == ("token_limit", None)
    asyncio.run(run(99))
    assert len(read_records(tmp_path / "a.jsonl")[1]) == 9
