"""Question sets in the forms in which they are published, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from research.errors import AssetError
from research.passages import Passage
from research.questions import Question, sources
from research.questions.paragraphs import paragraphs_of
from research.questions.sources import load_questions

MUSIQUE = {
    "id": "2hop__482757_12019",
    "paragraphs": [{"idx": 0, "title": "A", "paragraph_text": "…", "is_supporting": True}],
    "question": "When was the institute that owned The Collegian founded?",
    "question_decomposition": [{"id": 1, "question": "The Collegian >> owned by", "answer": "HBU"}],
    "answer": "1960",
    "answer_aliases": ["the year 1960"],
    "answerable": True,
}
HOTPOT = {
    "_id": "5a8b57f25542995d1e6f1371",
    "answer": "yes",
    "question": "Were Scott Derrickson and Ed Wood of the same nationality?",
    "supporting_facts": [["Scott Derrickson", 0], ["Ed Wood", 0]],
    "context": [["Ed Wood", ["Ed Wood was an American."]]],
    "type": "comparison",
    "level": "hard",
}
WIKI2 = {
    "_id": "8813f87c0bdd11eba7f7acde48001122",
    "type": "compositional",
    "question": "Who is the mother of the director of film Polish-Russian War?",
    "context": [["Xawery Żuławski", ["He is the son of Małgorzata Braunek."]]],
    "supporting_facts": [["Xawery Żuławski", 0]],
    "evidences": [["Xawery Żuławski", "mother", "Małgorzata Braunek"]],
    "answer": "Małgorzata Braunek",
    "answer_id": "Q274277",
}
FLASHRAG = {"id": "test_0", "question": "Who was president then?", "golden_answers": ["Zachary Taylor", "Taylor"]}
SEARCH_R1 = {
    "id": "train_0",
    "question": "total number of death row inmates in the us",
    "data_source": "nq",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["2,718"]}},
}


def load(path: Path) -> list[Question]:
    return load_questions(str(path), "held_out", path.parent)


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_musique(tmp_path: Path) -> None:
    (question,) = load(lines(tmp_path / "musique_ans_v1.0_dev.jsonl", MUSIQUE))
    assert (question.answers, question.kind) == (("1960", "the year 1960"), "2hop")
    assert question.supporting_titles == ("A",)


def test_hotpotqa(tmp_path: Path) -> None:
    path = tmp_path / "hotpot_dev_distractor_v1.json"
    path.write_text(json.dumps([HOTPOT]))
    (question,) = load(path)
    assert (question.id, question.answers, question.kind) == (HOTPOT["_id"], ("yes",), "comparison")
    assert question.supporting_titles == ("Scott Derrickson", "Ed Wood")


def test_2wiki_with_its_aliases(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([WIKI2]))
    assert load(path)[0].answers == ("Małgorzata Braunek",)
    lines(tmp_path / "id_aliases.json", {"Q_id": "Q274277", "aliases": ["Braunek"], "demonyms": []})
    assert load(path)[0].answers == ("Małgorzata Braunek", "Braunek")
    (tmp_path / "id_aliases.json").write_text("nonsense")
    with pytest.raises(AssetError, match="file of aliases"):
        load(path)


def test_bamboogle(tmp_path: Path) -> None:
    path = tmp_path / "bamboogle.csv"
    path.write_text(
        'Question,Answer\n"Who was president, when superconductivity was discovered?",Franklin D. Roosevelt\n'
    )
    (question,) = load(path)
    assert question.text == "Who was president, when superconductivity was discovered?"
    assert question.answers == ("Franklin D. Roosevelt",)


@pytest.mark.parametrize(("record", "answers"), [(FLASHRAG, ("Zachary Taylor", "Taylor")), (SEARCH_R1, ("2,718",))])
def test_flashrag_and_search_r1_as_lines_and_as_parquet(
    tmp_path: Path, record: dict[str, Any], answers: tuple[str, ...]
) -> None:
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "test.parquet")
    for path in (lines(tmp_path / "test.jsonl", record), tmp_path / "test.parquet"):
        (question,) = load(path)
        assert (question.text, question.answers) == (record["question"], answers)
        assert question.id == ("nq/train_0" if "data_source" in record else "test_0")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.jsonl", json.dumps(FLASHRAG) + "\n\n{nonsense\n", "a.jsonl, line 3, is not JSON"),
        ("a.jsonl", json.dumps(FLASHRAG) + '\n{"question": "Who?"}\n', "a.jsonl, line 2, .*'answer'"),
        ("a.jsonl", '{"question": " ", "answer": "x"}\n', "line 1, .*question is blank"),
        ("a.jsonl", '{"question": "Who?", "golden_answers": []}\n', "line 1, .*no answer"),
        ("a.jsonl", "7\n", "line 1, is not a question"),
        ("a.jsonl", '{"question": "Who?", "answer": null}\n', "line 1, .*"),
        ("a.jsonl", '{"question": "Who?", "golden_answers": [null]}\n', "neither text nor number: None"),
        ("a.jsonl", '{"id": 1, "text": "Who?", "answers": [{}]}\n', "line 1, .*neither text nor number"),
        ("a.jsonl", '{"id": 1, "text": "", "answers": ["x"]}\n', "line 1, .*question is blank"),
        ("a.jsonl", '{"question": "?", "answer": "x", "answerable": false}\n', "line 1, .*MuSiQue-Ans"),
        ("a.csv", "Question,Answer\nWho?\n", "line 2, is not a question"),
        ("a.jsonl", json.dumps(FLASHRAG) + "\n" + json.dumps(FLASHRAG), "1 questions have the id of another"),
        ("a.jsonl", "", "holds no question"),
        ("a.json", "[{]", "a.json is not JSON"),
        ("a.json", '{"version": 1}', "not a JSON array"),
        ("a.json", '[{"question": "Who?", "answer": "I"}, 7]', "record 2, is not a question"),
        ("a.csv", 'Question,Answer\n"torn', "a.csv, line ., is not CSV"),
        ("a.csv", "Frage,Antwort\nWer?,ich\n", "line 2, .*'question'"),
        ("a.parquet", "no parquet", "a.parquet is not Parquet"),
    ],
)
def test_a_broken_file_is_refused_with_place_and_reason(tmp_path: Path, name: str, content: str, named: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(AssetError, match=named):
        load(path)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"nothing\.jsonl: No such file"):
        load(tmp_path / "nothing.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AssetError, match=r"binary\.jsonl"):
        load(tmp_path / "binary.jsonl")


def test_paragraphs_of_a_set_are_a_corpus_each_once(tmp_path: Path) -> None:
    hotpot = tmp_path / "hotpot.json"
    hotpot.write_text(json.dumps([HOTPOT, HOTPOT]))
    musique = lines(tmp_path / "musique.jsonl", MUSIQUE, MUSIQUE)
    assert list(paragraphs_of([musique, hotpot])) == [
        Passage("0", "A", "…"),
        Passage("1", "Ed Wood", "Ed Wood was an American."),
    ]
    with pytest.raises(AssetError, match="line 1, is not a question with its paragraphs"):
        list(paragraphs_of([lines(tmp_path / "flat.jsonl", FLASHRAG)]))


@pytest.mark.parametrize(
    "record",
    [
        {"id": 7, "text": "When?", "answers": [1958, "in 1958"]},
        {"id": 7, "question": "When?", "golden_answers": [1958, "in 1958", "in 1958"]},
        {"id": 7, "question": "When?", "answer": 1958, "answer_aliases": ["in 1958"]},
        {"id": 7, "question": "When?", "answer": "1958", "answer_aliases": "in 1958"},
    ],
)
def test_ids_and_answers_are_text_whatever_wrote_them(tmp_path: Path, record: dict[str, Any]) -> None:
    (question,) = load(lines(tmp_path / "a.jsonl", record))
    assert (question.id, question.answers) == ("7", ("1958", "in 1958"))


@pytest.mark.parametrize("form", ["answers", "golden_answers", "answer"])
def test_a_single_answer_is_not_taken_apart(tmp_path: Path, form: str) -> None:
    text = "text" if form == "answers" else "question"
    (question,) = load(lines(tmp_path / "a.jsonl", {"id": "q", text: "Where?", form: "Paris"}))
    assert question.answers == ("Paris",)


def test_search_r1_counts_each_of_its_sets_from_0(tmp_path: Path) -> None:
    other = {**SEARCH_R1, "data_source": "hotpotqa"}
    assert [q.id for q in load(lines(tmp_path / "a.jsonl", SEARCH_R1, other))] == ["nq/train_0", "hotpotqa/train_0"]


def test_flashrag_keeps_kind_and_supporting_titles_aside(tmp_path: Path) -> None:
    metadata = {"type": "bridge", "supporting_facts": {"title": ["A", "B"], "sent_id": [0, 1]}}
    (question,) = load(lines(tmp_path / "a.jsonl", {**FLASHRAG, "metadata": metadata}))
    assert (question.kind, question.supporting_titles) == ("bridge", ("A", "B"))


def test_supporting_facts_as_objects(tmp_path: Path) -> None:
    facts = [{"title": "Ed Wood", "sent_id": 0}]
    (question,) = load(lines(tmp_path / "a.jsonl", {**FLASHRAG, "supporting_facts": facts}))
    assert question.supporting_titles == ("Ed Wood",)


@pytest.mark.parametrize("kind", [2, None])
def test_a_kind_is_text_whatever_wrote_it(tmp_path: Path, kind: int | None) -> None:
    (question,) = load(lines(tmp_path / "a.jsonl", {"id": 1, "text": "?", "answers": ["x"], "kind": kind}))
    assert question.kind == ("unknown" if kind is None else "2")


@pytest.mark.parametrize("facts", ["A, B", "AB", ["A", "B"], ["AB"], [["A"]], 3])
def test_supporting_facts_in_an_unknown_form_are_none(tmp_path: Path, facts: Any) -> None:
    (question,) = load(lines(tmp_path / "a.jsonl", {**FLASHRAG, "supporting_facts": facts}))
    assert question.supporting_titles == ()


def test_an_id_with_two_underscores_is_no_kind(tmp_path: Path) -> None:
    (question,) = load(lines(tmp_path / "a.jsonl", {**FLASHRAG, "id": "nq__17"}))
    assert question.kind == "unknown"


def test_sentences_of_2wiki_bring_no_space_along(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    hotpot, wiki = ["One.", " Two."], ["One.", "Two. ", "Three."]
    path.write_text(json.dumps([{"question": "?", "context": [["H", hotpot], ["W", wiki], ["E", []]]}]))
    assert [passage.text for passage in paragraphs_of([path])] == ["One. Two.", "One. Two. Three.", ""]


def test_a_benchmark_by_name_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def hub(name: str) -> list[dict[str, Any]]:
        asked.append(name)
        return [FLASHRAG]

    monkeypatch.setattr(sources, "hub_records", hub)
    (question,) = load_questions("musique", "held_out", tmp_path)
    assert (asked, question.id) == (["hub:RUC-NLPIR/FlashRAG_datasets:musique:dev"], "test_0")
