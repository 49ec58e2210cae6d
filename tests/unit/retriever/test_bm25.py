"""The index of words: what it finds, and that it is the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.errors import AssetError
from services.retriever.index.bm25 import BM25_DIRECTORY, Bm25Index, write_bm25

TEXTS = ["The painter of the night", "A night of paintings in Paris", "Moons and tides", "of the and"]
WRITE = f"""
import sys
from pathlib import Path
from services.retriever.index.bm25 import write_bm25
write_bm25(Path(sys.argv[1]), {TEXTS!r})
"""


def test_stems_are_found_best_first_and_nothing_where_no_word_is_shared(tmp_path: Path) -> None:
    write_bm25(tmp_path, iter(TEXTS))
    index = Bm25Index(tmp_path)
    assert index.count == 4
    assert index.search(["painting nights in Paris", "tide", "zebra", ""], 3).tolist() == [
        [1, 0, -1],
        [2, -1, -1],
        [-1, -1, -1],
        [-1, -1, -1],
    ]


def test_the_same_texts_give_the_same_files_in_every_process(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / seed)], check=True, env=environment)
    for file in (tmp_path / "1" / BM25_DIRECTORY).iterdir():
        assert file.read_bytes() == (tmp_path / "2" / BM25_DIRECTORY / file.name).read_bytes(), file.name


def test_passages_without_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="no passage holds a word"):
        write_bm25(tmp_path, ["of the", "—"])


def test_a_missing_or_broken_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="research index"):
        Bm25Index(tmp_path)
    write_bm25(tmp_path, TEXTS)
    (tmp_path / BM25_DIRECTORY / "data.csc.index.npy").write_bytes(b"")
    with pytest.raises(AssetError, match="research index"):
        Bm25Index(tmp_path)
