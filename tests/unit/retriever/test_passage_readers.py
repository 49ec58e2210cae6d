"""Passages from the files that people have."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from research.errors import AssetError
from research.passages import CorpusRow, Passage, write_passages
from services.retriever.build.passage_readers import corpus_digest, read_passages
from services.retriever.index.passage_store import PassageStore, write_passage_store

OURS: list[dict[str, Any]] = [
    {"id": "1", "title": "Alpha", "text": "first\nof two lines"},
    {"id": 2, "title": "Béta", "text": ""},
]
WANTED = [Passage("1", "Alpha", "first\nof two lines"), Passage("2", "Béta", "")]
# As in wiki-18.jsonl of Search-R1 and in the corpora of FlashRAG.
WIKI_18: list[dict[str, Any]] = [
    {"id": "0", "contents": '"Aaron"\nAaron is a prophet, "high priest"\nand the brother of Moses.'}
]
# The first lines of psgs_w100.tsv, quoted as there.
DPR = 'id\ttext\ttitle\n1\t"Aaron Aaron ( or ; ""Ahärôn"") is a prophet"\tAaron\n2\tGod at Sinai\tAaron\n'


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_our_own_form_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\n" + lines(OURS) + b"  \n")
    assert list(read_passages(tmp_path / "p.jsonl")) == WANTED


def test_wiki_18_contents_are_split_at_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "wiki.jsonl").write_bytes(lines(WIKI_18))
    [passage] = read_passages(tmp_path / "wiki.jsonl")
    assert passage == Passage("0", "Aaron", 'Aaron is a prophet, "high priest"\nand the brother of Moses.')


def test_beir_ids_and_further_columns(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(lines([{"_id": "d1", "title": "T", "text": "x", "metadata": {"url": "u"}}]))
    assert list(read_passages(tmp_path / "corpus.jsonl")) == [CorpusRow("d1", "T", "x", '{"metadata":{"url":"u"}}')]


@pytest.mark.parametrize(
    "contents",
    ["Aaron\ntext", '"Aaron" \ntext', '"Aaron"\r\ntext', "a whole line", ' "Aaron"\ntext', '"Aaron"', ""],
)
def test_contents_that_title_and_text_do_not_give_back_are_kept(tmp_path: Path, contents: str) -> None:
    (tmp_path / "c.jsonl").write_bytes(lines([{"id": "0", "contents": contents}, *WIKI_18]))
    odd, plain = read_passages(tmp_path / "c.jsonl")
    assert isinstance(odd, CorpusRow)
    assert json.loads(odd.fields) == {"contents": contents}
    assert type(plain) is Passage


def test_a_stored_row_says_what_its_line_said(tmp_path: Path) -> None:
    rows = [{"id": "0", "title": "T", "text": "x", "url": "http://t", "year": 1999, "empty": ""}, *WIKI_18]
    (tmp_path / "c.jsonl").write_bytes(lines(rows))
    write_passage_store(tmp_path, read_passages(tmp_path / "c.jsonl"))
    store = PassageStore(tmp_path)
    first = store.record(0)
    assert json.loads(first.pop("fields")) == {"url": "http://t", "year": 1999}
    assert first == {"id": "0", "title": "T", "text": "x"}
    assert "fields" not in store.record(1)
    write_passages(tmp_path / "again.jsonl", read_passages(tmp_path / "c.jsonl"))
    assert list(read_passages(tmp_path / "again.jsonl")) == list(read_passages(tmp_path / "c.jsonl"))


def test_a_store_of_three_columns_is_read(tmp_path: Path) -> None:
    """As indexes from before 2026-12 have it."""
    schema = pa.schema([(name, pa.string()) for name in ("id", "title", "text")])
    with pa.OSFile(str(tmp_path / "passages.arrow"), "wb") as out, pa.ipc.new_file(out, schema) as arrow:
        arrow.write_batch(pa.record_batch([pa.array(["0"]), pa.array(["T"]), pa.array(["x"])], schema=schema))
    assert PassageStore(tmp_path).record(0) == {"id": "0", "title": "T", "text": "x"}


def test_of_parquet_what_is_no_text_number_or_truth_is_left_out(tmp_path: Path) -> None:
    columns = {"id": ["1"], "title": ["T"], "text": ["x"], "url": ["http://t"], "vector": [[0.5, 0.25]], "good": [True]}
    parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
    [row] = read_passages(tmp_path / "p.parquet")
    assert isinstance(row, CorpusRow)
    assert json.loads(row.fields) == {"url": "http://t", "good": True}


def test_the_tsv_of_dpr(tmp_path: Path) -> None:
    (tmp_path / "psgs.tsv").write_text(DPR, encoding="utf-8")
    assert list(read_passages(tmp_path / "psgs.tsv")) == [
        Passage("1", "Aaron", 'Aaron Aaron ( or ; "Ahärôn") is a prophet'),
        Passage("2", "Aaron", "God at Sinai"),
    ]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(("name", "content"), [("p.jsonl", lines(OURS)), ("p.tsv", DPR.encode())])
def test_what_is_compressed_is_read_as_it_is(tmp_path: Path, name: str, content: bytes, suffix: str) -> None:
    (tmp_path / f"{name}{suffix}").write_bytes(COMPRESS[suffix](content))
    (tmp_path / name).write_bytes(content)
    assert list(read_passages(tmp_path / f"{name}{suffix}")) == list(read_passages(tmp_path / name))


def test_zstandard_may_be_long_and_in_several_frames(tmp_path: Path) -> None:
    """As pzstd, or cat, makes it."""
    rows = [{"id": str(n), "title": f"t{n}", "text": "text " * 50} for n in range(20_000)]
    frames = [zstd(lines(rows[:9000])), zstd(lines(rows[9000:]))]
    (tmp_path / "p.jsonl.zst").write_bytes(b"".join(frames))
    assert [passage.id for passage in read_passages(tmp_path / "p.jsonl.zst")] == [row["id"] for row in rows]


@pytest.mark.parametrize("name", ["p.jsonl", "p.tsv"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path, name: str) -> None:
    content = lines(OURS) if name == "p.jsonl" else DPR.encode()
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert next(read_passages(tmp_path / name)).id == "1"


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ('"Aaron"', "Aaron"),
        ("Aaron", "Aaron"),
        ('"Weird Al" Yankovic', '"Weird Al" Yankovic'),
        ('""Heroes" (album)"', '"Heroes" (album)'),
        ('"', '"'),
    ],
)
def test_one_pair_of_quotes_around_a_title_is_taken_off(tmp_path: Path, line: str, title: str) -> None:
    (tmp_path / "wiki.jsonl").write_bytes(lines([{"id": "0", "contents": f"{line}\ntext"}]))
    assert [passage.title for passage in read_passages(tmp_path / "wiki.jsonl")] == [title]


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([{**r, "id": str(r["id"])} for r in OURS]), tmp_path / "p.parquet")
    assert list(read_passages(tmp_path / "p.parquet")) == WANTED


def test_a_directory_is_its_files_in_order_and_its_digest_is_theirs(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines(OURS[1:]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(OURS[:1])))
    (tmp_path / "notes.txt").write_text("no passages")
    assert list(read_passages(tmp_path)) == WANTED
    before = corpus_digest(tmp_path)
    (tmp_path / "b.jsonl").write_bytes(lines(OURS[:1]))
    assert corpus_digest(tmp_path) != before


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("p.jsonl", b'{"id": 1,\n', "line 1 is not JSON"),
        ("p.jsonl", lines(OURS) + b"[]\n", "record 3 is not an object"),
        ("p.jsonl", lines([{"title": "T", "text": "x"}]), "record 1 has no `id`; it has `title`, `text`"),
        ("p.jsonl", lines([{"id": 1, "body": "x"}]), "neither `title` and `text` nor `contents`; it has `id`, `body`"),
        ("p.tsv", b"1\tAlpha\tx\n2\tBeta\ty\n", "record 1 has no `id`; it has `1`, `Alpha`, `x`"),
        ("p.tsv", b"id\ttitle\ttext\n1\tonly a title\n", "neither `title` and `text`"),
        ("p.jsonl", b'{"id": 1, "title": "T", "text": "\xff"}\n', "p.jsonl"),
        ("p.jsonl.gz", b"not gzip", "cannot read passages"),
        ("p.jsonl.gz", gzip.compress(lines(OURS * 50))[:-20], "cannot read passages"),
        ("p.jsonl.zst", b"not zstandard", "cannot read passages"),
        ("p.jsonl.zst", zstd(lines(OURS * 50))[:-20], "cannot read passages"),
        ("p.parquet", b"not parquet", "is not a Parquet file"),
        ("p.tsv", b'id\ttext\ttitle\n1\t"Hello\tA\n2\tsay "x" now\tB\n', "expected after"),
        ("p.csv", b"id,title,text\n", "is not a passage file; use .jsonl"),
    ],
)
def test_what_is_broken_is_named_with_file_and_record(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AssetError) as refusal:
        list(read_passages(tmp_path / name))
    assert named in str(refusal.value)
    assert name in str(refusal.value)


def test_nothing_to_read_is_said_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="there are no passages at"):
        corpus_digest(tmp_path / "none.jsonl")
    with pytest.raises(AssetError, match="no file in"):
        corpus_digest(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(AssetError, match="is empty"):
        corpus_digest(tmp_path)
