"""What is made of runs of the bench: figures, verdicts, comparison, report, plots and page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apps.bench.report import write_report
from research.bench.figures import ALL_KINDS, figures_by_kind, paired_difference
from research.bench.judge import PROMPT_HASH, Verdict, Verdicts, judge_all, last_judge, read_verdict
from research.bench.paper import PAPER
from research.bench.runs import VERDICTS, BenchRun, read_runs
from research.config import load_settings
from research.episode.agent import Sampling
from research.errors import AssetError, ConfigurationError, ServiceError
from research.questions import Question
from research.questions.benchmarks import BENCHMARKS, benchmark_of, set_name
from research.settings.measuring import PriceConfig
from research.strategies import BASELINES
from research.strategies.baselines import naive_rag
from research.strategies.chat import Completion, Message, Session
from research.strategies.prompt_hash import prompt_hash
from tests.support.bench_runs import record, write_run


def run_of(records: list[dict[str, Any]], **more: Any) -> BenchRun:
    return BenchRun(
        "here",
        Path("set/naive.jsonl"),
        "set",
        "naive",
        {"model": "tiny"},
        records,
        more.get("judge"),
        more.get("verdicts"),
    )


def test_figures_are_means_of_all_and_of_each_kind() -> None:
    records = [record("a", 1.0, recall=0.5), record("b", 0.0, stop_reason="token_limit"), record("c", 1.0, kind="ask")]
    records.append(record("d", 0.0, kind="ask", answer=None, recall=1.0))
    found = figures_by_kind(run_of(records), PriceConfig(input=2.0, output=10.0, search=1.0))
    assert list(found) == [ALL_KINDS, "ask", "say"]
    assert (found["say"].recall, found["ask"].recall, found[ALL_KINDS].recall) == (0.5, 1.0, 0.75)
    assert (found["say"].em.mean, found["say"].em.n, found[ALL_KINDS].em.mean) == (0.5, 2, 0.5)
    everything = found[ALL_KINDS]
    assert (everything.searches, everything.read, everything.written, everything.seconds) == (2, 25, 5, 0.5)
    assert (everything.truncated, everything.unanswered, everything.judge) == (1, 1, None)
    # 25 tokens read at 2 and 5 written at 10 USD a million, 2 searches at 1 USD a thousand.
    assert everything.cost == pytest.approx((25 * 2 + 5 * 10) / 1e6 + 2 / 1e3)
    assert figures_by_kind(run_of([])) == {}


def test_two_runs_are_compared_on_the_questions_that_both_answered() -> None:
    these = [record("a", 1.0), record("b", 1.0), record("c", 0.0), record("x", 0.0)]
    those = [record("c", 0.0), record("a", 0.0), record("b", 1.0), record("y", 1.0)]
    # The same id may stand for another question of another edition.
    these.append(record("z", 1.0))
    those.append(record("z", 0.0, question="Another one?"))
    difference = paired_difference(these, those)
    assert (difference.mean, difference.n) == (pytest.approx(1 / 3), 3)
    assert difference.low <= difference.mean <= difference.high
    with pytest.raises(ValueError, match="0 clusters"):
        paired_difference(these, [])


@dataclass
class Judge:
    """Says that "right" is right; fails for some answers, or writes no verdict on them."""

    failing: set[str] = field(default_factory=set)
    mumbling: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    async def complete_json(
        self, messages: list[Message], max_tokens: int, sampling: Sampling, schema: Mapping[str, Any]
    ) -> Completion:
        assert sampling.temperature == 0.0
        told = json.loads(messages[1].content)
        answer = told["given_answer"]
        self.asked.append(told["question"])
        if answer in self.failing:
            raise ServiceError("the judge is away")
        text = "Well." if answer in self.mumbling else json.dumps({"reason": "so", "correct": answer == "right"})
        return Completion(f"Here: {text}", cut=False, prompt_tokens=1, sampled_tokens=1)


def judge(path: Path, judge: Judge, records: list[dict[str, Any]], name: str = "j") -> int:
    with Verdicts(path, name) as verdicts:
        return asyncio.run(judge_all(judge, verdicts, records, concurrency=2))


def test_each_answer_is_judged_once_and_failures_count_as_wrong(tmp_path: Path) -> None:
    path = tmp_path / VERDICTS
    records = [record("a", 1.0), record("b", 0.0), record("c", 0.0, answer="odd"), record("d", 0.0, answer="lost")]
    records += [record("e", 0.0, answer=None), record("a", 1.0)]
    first = Judge(failing={"lost"}, mumbling={"odd"})
    assert judge(path, first, records) == 2
    assert sorted(first.asked) == [f"What is {name}?" for name in "abcd"], "none twice, and no answer is not judged"
    assert last_judge(path) == "j"
    verdicts = Verdicts(path, "j")
    found = figures_by_kind(run_of(records[:5], judge="j", verdicts=verdicts))[ALL_KINDS]
    assert found.judge is not None
    assert (found.judge.mean, found.judge.n, found.unjudged) == (0.2, 5, 2)
    # What failed is asked again, what was judged is not; another judge is asked everything.
    again = Judge()
    assert judge(path, again, records) == 0
    assert sorted(again.asked) == ["What is c?", "What is d?"]
    other = Judge()
    judge(path, other, records, name="k")
    assert len(other.asked) == 4


def test_a_judge_that_is_away_ends_it_and_what_was_judged_stays(tmp_path: Path) -> None:
    records = [record(f"q{number}", 0.0, answer="right" if number < 3 else "lost") for number in range(60)]
    with pytest.raises(ServiceError, match="the judge is away"):
        judge(tmp_path / VERDICTS, Judge(failing={"lost"}), records)
    verdicts = Verdicts(tmp_path / VERDICTS, "j")
    assert [verdicts.of(each) is not None for each in records] == [True] * 3 + [False] * 57


def test_a_verdict_torn_by_a_kill_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / VERDICTS
    judge(path, Judge(), [record("a", 1.0), record("b", 0.0)])
    path.write_bytes(path.read_bytes()[:-7])
    again = Judge()
    assert judge(path, again, [record("a", 1.0), record("b", 0.0)]) == 0
    assert len(again.asked) == 1
    path.write_text('{"key": "x"}\n')
    with pytest.raises(AssetError, match=":1 is not a verdict"):
        Verdicts(path, "j")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"reason": "same", "correct": true}', Verdict(correct=True, reason="same")),
        ('```json\n{"correct": false}\n``` and more', Verdict(correct=False, reason="")),
        ("true", None),
        ('{"correct": "yes"}', None),
        ('{"correct": tru', None),
        ("[{}]", None),
        ('{"a":' * 100_000, None),
    ],
)
def test_a_verdict_is_the_first_object_in_what_was_written(text: str, verdict: Verdict | None) -> None:
    if verdict is not None:
        assert read_verdict(text) == verdict
    else:
        with pytest.raises(ValueError, match=r"object|boolean|delimiter|Expecting|JSON"):
            read_verdict(text)


def test_the_report_says_first_what_differs_and_has_the_paper_beside(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for directory, right in ((before, 1), (after, 3)):
        for strategy in ("naive", "research"):
            answers = [record(f"q{number}", float(number < right), kind=f"{number % 2 + 2}hop") for number in range(4)]
            write_run(directory, "musique", strategy, answers, top_k=5 if directory is before else 3)
    write_run(before, "mine", "naive", [record("<script>|", 1.0)], asked=3)
    with Verdicts(before / VERDICTS, "j") as verdicts:
        for run in read_runs([before]):
            verdicts.begin(run.set, run.strategy)
            asyncio.run(judge_all(Judge(mumbling={"wrong"}), verdicts, run.records, concurrency=1))
    settings = load_settings("quickstart-cpu", ['bench.prices={"tiny"={input=1,output=2}}'])
    report = write_report([before, after], tmp_path / "out", settings, ["research", "report"])
    text = report.path.read_text()
    assert text.index("These runs differ") < text.index("## Results")
    assert "- before and after differ in top_k: 5 and 3 (musique: naive, musique: research)" in text
    assert "MuSiQue has 4 questions here, but the paper asked 2417" in text
    assert "before, mine: naive: 2 of 3 questions are not answered yet" in text
    assert "before, musique: naive: 3 of 4 answers have no verdict; they count as wrong" in text
    assert "| *the paper* | 7B research, from instruct |  | 22.3 / 33.4 |" in text
    assert "| after | research |  | 75.0 |" in text
    assert "| before | naive | 100.0 / 100.0 | 25.0 / 25.0 |" in text
    assert "| MuSiQue | after: research | before: research | 50.0 [" in text
    assert "USD for 1,000" in text
    assert (tmp_path / "out" / "plots.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "episodes.html").read_text()
    assert "<script>|" not in page
    data = json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    assert len(data["episodes"]) == 17
    assert {episode["evaluation"] for episode in data["episodes"]} >= {"before mine naive", "after musique research"}


def test_directories_without_runs_or_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="holds no run"):
        read_runs([tmp_path])
    for parent in ("a", "b"):
        write_run(tmp_path / parent / "bench", "set", "naive", [record("q", 1.0)])
    with pytest.raises(ConfigurationError, match="two directories are called bench"):
        read_runs([tmp_path / "a" / "bench", tmp_path / "b" / "bench"])


def test_the_papers_table_has_every_benchmark_in_each_row() -> None:
    names = {benchmark.name for benchmark in BENCHMARKS}
    assert all(set(row) == names for row in PAPER.values())
    assert all(0 < em < judged < 100 for row in PAPER.values() for em, judged in row.values())


@pytest.mark.parametrize(
    ("source", "kinds", "name"),
    [
        ("hotpot_dev_distractor_v1.json", [], "hotpotqa"),
        ("hub:RUC-NLPIR/FlashRAG_datasets:2wikimultihopqa:dev", [], "2wikimultihopqa"),
        ("dev.json", ["compositional", "comparison", "inference", "bridge_comparison"], "2wikimultihopqa"),
        ("dev.json", ["bridge", "comparison"], "hotpotqa"),
        ("dev.jsonl", ["2hop", "3hop1", "4hop2"], "musique"),
        ("Bamboogle Prerelease - Sheet1.csv", [], "bamboogle"),
        ("mine/questions v2.jsonl", ["comparison"], "questions-v2"),
        ("builtin", ["one_hop"], "builtin"),
        ("/data/hotpot-and-musique/musique_ans_v1.0_dev.jsonl", [], "musique"),
        ("/data/bamboogle-clone/mine.jsonl", ["odd"], "mine"),
        ("/data/bamboogle/test.jsonl", ["unknown"], "bamboogle"),
    ],
)
def test_a_set_is_known_by_its_name_or_its_kinds(source: str, kinds: list[str], name: str) -> None:
    questions = [Question(str(number), "?", ("x",), kind=kind) for number, kind in enumerate(kinds)]
    assert set_name(source, benchmark_of(source, questions)) == name


def test_a_benchmark_of_another_size_is_warned_of() -> None:
    sizes = {benchmark.name: benchmark.size for benchmark in BENCHMARKS}
    assert sizes == {"hotpotqa": 7405, "2wikimultihopqa": 12576, "musique": 2417, "bamboogle": 125}
    for benchmark in BENCHMARKS:
        assert benchmark.warning(benchmark.size) is None
        assert str(benchmark.size) in str(benchmark.warning(100))


def test_the_hash_of_a_prompt_changes_with_any_word_that_a_model_sees() -> None:
    async def other(work: Session, question: str) -> str:
        return await naive_rag(work, question + " ")

    async def trusting(work: Session, question: str) -> str:
        return "So " + str(await naive_rag(work, question))

    hashes = [asyncio.run(prompt_hash(baseline)) for baseline in (*BASELINES.values(), other, trusting)]
    assert len(set(hashes)) == len(hashes)
    assert asyncio.run(prompt_hash(naive_rag)) == asyncio.run(prompt_hash(naive_rag))
    assert len(PROMPT_HASH) == 64


def test_a_directory_of_two_models_says_so_first(tmp_path: Path) -> None:
    write_run(tmp_path / "d", "mine", "naive", [record("q", 0.0)], model="a", weights="1")
    write_run(tmp_path / "d", "mine", "research", [record("q", 1.0)], model="b", weights="1")
    text = write_report([tmp_path / "d"], tmp_path / "out", load_settings(), ["research"]).path.read_text()
    told = "- d: mine, naive and mine, research differ in model: 'a' and 'b'"
    assert text.index(told) < text.index("## Results")


def test_what_was_never_judged_has_no_verdict_and_the_named_judge_counts(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    write_run(directory, "mine", "naive", [record("q", 1.0)])
    for name, graded in (("a", Judge()), ("b", Judge(mumbling={"right"}))):
        judge(directory / VERDICTS, graded, [record("q", 1.0)], name=name)
    for name in ("a", "b"):
        with Verdicts(directory / VERDICTS, name) as verdicts:
            verdicts.begin("mine", "naive")
            verdicts.begin("mine", "research")
    with Verdicts(directory / VERDICTS, "b") as verdicts:
        verdicts.add(record("q", 1.0), Verdict(correct=False, reason="no"))
    write_run(directory, "mine", "research", [record("q", 0.0, answer=None)])
    write_run(directory, "mine", "ircot", [record("other", 1.0)])
    by = {name: {run.strategy: run for run in read_runs([directory], name)} for name in ("a", "b", "")}
    assert by["a"]["ircot"].verdicts is None
    silent = figures_by_kind(by["a"]["research"])[ALL_KINDS]
    assert silent.judge is not None
    assert (silent.judge.mean, silent.unjudged) == (0.0, 0), "no answer at all is wrong without asking"
    figures = {name: figures_by_kind(runs["naive"])[ALL_KINDS].judge for name, runs in by.items()}
    assert {name: found.mean for name, found in figures.items() if found} == {"a": 1.0, "b": 0.0, "": 0.0}


def test_nothing_answered_is_reported_as_that(tmp_path: Path) -> None:
    write_run(tmp_path / "d", "mine", "naive", [], asked=3)
    (tmp_path / "d" / "mine" / "ircot.jsonl").write_text("")
    report = write_report([tmp_path / "d"], tmp_path / "out", load_settings(), ["research"])
    assert "naive: 3 of 3 questions are not answered yet" in report.path.read_text()


def test_what_others_wrote_becomes_no_markup(tmp_path: Path) -> None:
    kinds = ["a\n<script>alert(1)</script>", "![x](http://evil/x.png)|", r"$\alph$"]
    write_run(tmp_path / "d", "mine", "naive", [record(kind, 1.0, kind=kind, answer="\udc80") for kind in kinds])
    with Verdicts(tmp_path / "d" / VERDICTS, "j") as verdicts:
        asyncio.run(judge_all(Judge(), verdicts, read_runs([tmp_path / "d"])[0].records, concurrency=1))
    text = write_report([tmp_path / "d"], tmp_path / "out", load_settings(), ["research"]).path.read_text()
    assert "<script" not in text
    assert "](http" not in text
