"""`research audit` with the real encoder and the built-in index."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from cli.main import app
from research.questions import Question, read_questions, write_questions


def test_of_a_corpus_it_tells_what_is_there_and_what_searches_bring(data_dir: Path, tmp_path: Path) -> None:
    asked = [each for each in read_questions(data_dir / "questions" / "builtin-held_out.jsonl") if each.hops]
    two_hops = [each for each in asked if each.kind == "two_hop"][:10]
    absent = Question(
        "absent", "Who wrote the Codex of Nowhere?", ("nobody",), supporting=("Codex of Nowhere", "Paris")
    )
    unsaid = replace(two_hops[0], id="unsaid", answers=("an answer that no page gives",))
    norway = Question("norway", "Which country is it?", ("Norway", "no"), supporting=("Paris",))
    unknown = Question("unknown", "Who?", ("x",))
    write_questions(tmp_path / "mine.jsonl", [*two_hops, absent, unsaid, norway, unknown])
    ran = CliRunner().invoke(
        app,
        [
            "audit",
            "--questions",
            str(tmp_path / "mine.jsonl"),
            "--out",
            str(tmp_path / "out"),
            f"paths.data={data_dir}",
        ],
    )
    assert ran.exit_code == 0, ran.output
    answerable = {each.id for each in read_questions(tmp_path / "out" / "mine-answerable.jsonl")}
    assert answerable == {each.id for each in two_hops}
    figures = json.loads((tmp_path / "out" / "audit.json").read_text())["sets"]["mine"]["all"]
    assert figures["questions"] == 13
    assert figures["pages_there"] == 12 / 13
    assert figures["found_by_question/vectors"] < figures["found_by_hops/vectors"]
    assert "Codex of Nowhere,1" in (tmp_path / "out" / "missing-pages.csv").read_text()
    assert "1 questions of mine name no pages" in ran.output
