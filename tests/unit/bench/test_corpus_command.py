"""`research corpus`: passages from question sets and from dumps of Wikipedia."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from rich.console import Console

from apps.bench.corpus import write_corpus
from research.errors import AssetError, ConfigurationError
from research.passages import Passage, iter_passages

QUIET = Console(quiet=True)
DPR = 'id\ttext\ttitle\n1\t"Aaron is a prophet, ""the"" priest."\tAaron\n2\tHe is in Exodus.\tAaron\n'
WIKI18 = [{"id": "0", "contents": '"Aaron"\nAaron is a prophet.'}, {"id": "1", "contents": "Ed Wood\nHe made\nfilms."}]


def test_a_dump_in_dprs_form_packed_or_not(tmp_path: Path) -> None:
    (tmp_path / "psgs_w100.tsv").write_text(DPR)
    (tmp_path / "psgs_w100.tsv.gz").write_bytes(gzip.compress(DPR.encode()))
    for name in ("psgs_w100.tsv", "psgs_w100.tsv.gz"):
        assert write_corpus([tmp_path / name], tmp_path / "out.jsonl", QUIET) == 2
        assert list(iter_passages(tmp_path / "out.jsonl")) == [
            Passage("1", "Aaron", 'Aaron is a prophet, "the" priest.'),
            Passage("2", "Aaron", "He is in Exodus."),
        ]


def test_a_dump_in_the_form_of_wiki_18(tmp_path: Path) -> None:
    dump = tmp_path / "wiki-18.jsonl"
    dump.write_text("".join(json.dumps(record) + "\n" for record in WIKI18))
    assert write_corpus([dump], tmp_path / "out.jsonl", QUIET) == 2
    assert list(iter_passages(tmp_path / "out.jsonl")) == [
        Passage("0", "Aaron", "Aaron is a prophet."),
        Passage("1", "Ed Wood", "He made\nfilms."),
    ]


def test_a_broken_dump_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    dump = tmp_path / "wiki-18.jsonl"
    dump.write_text(json.dumps(WIKI18[0]) + "\n" + json.dumps({"id": "1"}) + "\n")
    with pytest.raises(AssetError, match="record 2 has neither"):
        write_corpus([dump], tmp_path / "out.jsonl", QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["wiki-18.jsonl"]


def test_question_sets_and_dumps_are_not_mixed(tmp_path: Path) -> None:
    dump, questions = tmp_path / "wiki-18.jsonl", tmp_path / "hotpot.json"
    dump.write_text(json.dumps(WIKI18[0]) + "\n")
    questions.write_text(json.dumps([{"question": "Who?", "context": [["A", ["b."]]]}]))
    with pytest.raises(ConfigurationError, match="so it is a dump"):
        write_corpus([questions, dump], tmp_path / "out.jsonl", QUIET)
    assert write_corpus([questions], tmp_path / "out.jsonl", QUIET) == 1
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(AssetError, match="is empty"):
        write_corpus([tmp_path / "empty.jsonl"], tmp_path / "out.jsonl", QUIET)
