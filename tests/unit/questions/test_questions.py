"""Question files and the order of questions."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.errors import AssetError, ConfigurationError
from research.questions import Hop, Question, read_questions, write_questions
from research.questions.sampler import QuestionSampler
from research.questions.sampling import first_of_each_kind
from research.questions.sources import keep_hub_records, load_questions

QUESTIONS = [
    Question(f"{kind}-{i}", f"{kind} {i}?", ("yes",), kind, hops=(Hop("q", "what", "T", "yes"),))
    for kind in ("one_hop", "two_hop")
    for i in range(7)
]


def test_questions_survive_writing_and_reading(tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", QUESTIONS)
    assert read_questions(tmp_path / "q.jsonl") == QUESTIONS
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(asdict(QUESTIONS[0])) + "\n{\n")
    with pytest.raises(AssetError, match=":2 is"):
        read_questions(path)


MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who?",
    "answer": "Ann",
    "answer_aliases": ["Anna"],
    "answerable": True,
    "paragraphs": [],
}
HOTPOT = {"_id": "5a", "question": "Who?", "answer": "Ann", "type": "bridge", "level": "hard", "context": []}
FLASHRAG = {"id": "dev_1", "question": "Who?", "golden_answers": ["Ann", "Anna"], "metadata": {}}


@pytest.mark.parametrize(
    ("name", "records", "answers", "kind"),
    [
        ("musique.jsonl", [MUSIQUE], ("Ann", "Anna"), "2hop"),
        ("hotpot.json", [HOTPOT], ("Ann",), "bridge"),
        ("flashrag.jsonl", [FLASHRAG], ("Ann", "Anna"), "unknown"),
        ("ours.jsonl", [asdict(QUESTIONS[0])], ("yes",), "one_hop"),
    ],
)
def test_known_formats(
    tmp_path: Path, name: str, records: list[dict[str, Any]], answers: tuple[str, ...], kind: str
) -> None:
    path = tmp_path / name
    if path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (question,) = load_questions(str(path), "train", tmp_path)
    assert question.answers == answers
    assert question.kind == kind


def test_a_data_set_of_the_hub_library_loads(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps(FLASHRAG) + "\n")
    (question,) = load_questions(f"hub:{tmp_path}/set::train", "train", tmp_path)
    assert question.answers == ("Ann", "Anna")


def test_a_set_of_the_hub_that_was_prepared_is_read_without_the_hub(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps(FLASHRAG) + "\n")
    name = f"hub:{tmp_path}/set::train"
    streamed = load_questions(name, "train", tmp_path)
    kept = keep_hub_records(name, tmp_path / "data")
    shutil.rmtree(tmp_path / "set")
    assert keep_hub_records(name, tmp_path / "data") == kept, "it is fetched once"
    assert load_questions(name, "train", tmp_path / "data") == streamed
    with pytest.raises(AssetError, match="cannot be loaded"):
        keep_hub_records(name, tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").rglob("*.*"))


def test_sets_of_the_hub_whose_names_are_alike_have_files_of_their_own(tmp_path: Path) -> None:
    for name in ("a_b", "a-b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps({**FLASHRAG, "id": name}) + "\n")
        keep_hub_records(f"hub:{tmp_path}/{name}::train", tmp_path / "data")
    for name in ("a_b", "a-b"):
        (question,) = load_questions(f"hub:{tmp_path}/{name}::train", "train", tmp_path / "data")
        assert question.id == name


@pytest.mark.parametrize("name", ["missing.jsonl", "hub:only-two:parts", "builtin"])
def test_missing_sets_are_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(AssetError):
        load_questions(name if ":" in name or name == "builtin" else str(tmp_path / name), "train", tmp_path)


@given(st.integers(1, 12), st.integers(0, 1000))
def test_the_stream_goes_on_exactly_where_its_cursors_say(count: int, seed: int) -> None:
    mix = {"one_hop": 0.3, "two_hop": 0.7}
    stream = QuestionSampler(QUESTIONS, mix, seed)
    whole = [question for _ in range(6) for question in stream.draw(count)]
    first = QuestionSampler(QUESTIONS, mix, seed)
    before = [question for _ in range(2) for question in first.draw(count)]
    resumed = QuestionSampler(QUESTIONS, mix, seed)
    resumed.cursors = dict(first.cursors)
    after = [question for _ in range(4) for question in resumed.draw(count)]
    assert before + after == whole


def test_an_epoch_asks_every_question_once_and_the_next_in_another_order() -> None:
    stream = QuestionSampler(QUESTIONS, {}, 3)
    first, second = stream.draw(len(QUESTIONS)), stream.draw(len(QUESTIONS))
    assert Counter(q.id for q in first) == Counter(q.id for q in second) == Counter(q.id for q in QUESTIONS)
    assert first != second


@given(st.integers(1, 40))
def test_the_mix_is_kept_exactly(count: int) -> None:
    drawn = QuestionSampler(QUESTIONS, {"one_hop": 0.3, "two_hop": 0.7}, 1).draw(count)
    assert len(drawn) == count
    ones = sum(question.kind == "one_hop" for question in drawn)
    assert abs(ones - 0.3 * count) < 1


def test_a_mix_of_unknown_kinds_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one_hop, two_hop"):
        QuestionSampler(QUESTIONS, {"three_hop": 1.0}, 1)


def test_of_several_candidates_the_most_instructive_template_is_asked() -> None:
    pool = [
        Question(f"{t}/{n}", "Q?", ("a",), kind="one_hop", template=t)
        for t in ("easy", "open", "hard")
        for n in range(30)
    ]
    stream = QuestionSampler(pool, {"one_hop": 1.0}, 1, candidates=4)
    for _ in range(5):
        stream.update_curriculum(
            (question, {"easy": 1.0, "open": 0.4, "hard": 0.0}[question.template]) for question in pool
        )
    shares = Counter(question.template for question in stream.draw(60))
    assert shares["open"] > 40
    assert stream.cursors == {"one_hop": 240}


def test_a_resumed_stream_draws_what_the_unbroken_one_draws() -> None:
    pool = [Question(str(n), "Q?", ("a",), kind="one_hop", template=f"t{n % 7}") for n in range(50)]
    unbroken = QuestionSampler(pool, {}, 3, candidates=3)
    unbroken.update_curriculum((question, int(question.id) % 3 / 2) for question in unbroken.draw(9))
    resumed = QuestionSampler(pool, {}, 3, candidates=3)
    resumed.cursors, resumed.success = dict(unbroken.cursors), dict(unbroken.success)
    assert resumed.draw(12) == unbroken.draw(12)


def test_settled_questions_come_up_less_often_and_others_as_always() -> None:
    pool = [Question(str(n), "Q?", ("a",), kind="one_hop") for n in range(30)]
    shares = {"always": 1.0, "never": 0.0, "at times": 0.5}

    def fate(question: Question) -> str:
        return list(shares)[int(question.id) % 3]

    stream = QuestionSampler(pool, {}, 3, settled_share=0.25)
    stream.update_curriculum((question, shares[fate(question)]) for question in stream.draw(30))
    epochs = 40
    drawn = Counter(fate(question) for question in stream.draw(epochs * 15))  # half of 30 questions come up an epoch
    assert drawn["at times"] > 2 * drawn["always"] > 0
    assert drawn["at times"] > 2 * drawn["never"] > 0
    resumed = QuestionSampler(pool, {}, 3, settled_share=0.25)
    resumed.cursors, resumed.difficulty = dict(stream.cursors), dict(stream.difficulty)
    assert resumed.draw(50) == stream.draw(50)


def test_a_question_that_is_solved_for_once_is_settled_no_more() -> None:
    question = Question("1", "Q?", ("a",))
    stream = QuestionSampler([question], {}, 3, settled_share=0.0)
    for share, settled in ((0.0, True), (0.0, True), (0.25, False), (1.0, False)):
        stream.update_curriculum([(question, share)])
        assert stream._is_passed_over("", 0, question) is settled
    assert stream.difficulty == {"1": [4, 1.25]}


def test_where_every_question_is_settled_questions_are_still_drawn() -> None:
    pool = [Question(str(n), "Q?", ("a",), kind="one_hop") for n in range(5)]
    stream = QuestionSampler(pool, {}, 3, candidates=2, settled_share=0.0)
    stream.update_curriculum((question, 1.0) for question in pool)
    assert len(stream.draw(7)) == 7


def test_a_question_is_replaced_by_one_of_its_kind() -> None:
    stream = QuestionSampler(QUESTIONS, {"one_hop": 0.9, "two_hop": 0.1}, 1)
    twos = [question for question in QUESTIONS if question.kind == "two_hop"][:3]
    assert [question.kind for question in stream.draw_instead_of(twos)] == ["two_hop"] * 3
    unmixed = QuestionSampler(QUESTIONS, {}, 1)
    assert len(unmixed.draw_instead_of(twos)) == 3
    assert unmixed.cursors == {"": 3}


def test_kinds_can_be_counted_one_by_one() -> None:
    two = [replace(question, id=question.id + "n", new_template=True) for question in QUESTIONS]
    chosen = first_of_each_kind([*QUESTIONS, *two], {"one_hop": 2, "two_hop_new_template": 1})
    assert Counter(question.stratum for question in chosen) == {"one_hop": 2, "two_hop_new_template": 1}
    with pytest.raises(ConfigurationError, match="four_hop; known: one_hop, one_hop_new_template"):
        first_of_each_kind([*QUESTIONS, *two], {"four_hop": 1})
