"""Building an index with the real encoder: killed, resumed, repeated, replaced."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import faiss
import numpy as np
import pytest

from research.config import Settings, load_settings
from research.errors import AssetError, ConfigurationError
from research.passages import iter_passages, write_passages
from services.retriever.build import build_index
from services.retriever.checkpoint import open_checkpoint
from services.retriever.manifest import read_manifest
from services.retriever.published import SearchIndex

REPOSITORY = Path(__file__).resolve().parents[2]
StartBuild = Callable[[Path, str], "subprocess.Popen[bytes]"]
BUILD = """
import sys
from pathlib import Path
from research.config import load_settings
from services.retriever.build import build_index
build_index(load_settings("quickstart-cpu", sys.argv[2:]), Path(sys.argv[1]))
"""


@pytest.fixture
def data(tmp_path: Path, data_dir: Path) -> Path:
    """A data directory with the real models and no index yet."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "models").symlink_to(data_dir / "models")
    return tmp_path / "data"


def slice_of_corpus(data_dir: Path, target: Path, count: int, start: int = 0) -> Path:
    write_passages(target, islice(iter_passages(data_dir / "corpus" / "wikipedia-leads.jsonl"), start, start + count))
    return target


def overrides(data: Path, index: str) -> list[str]:
    # Short passages: what is tested does not depend on their length, the time does.
    return [f"paths.data={data}", f"corpus.index={index}", "encoder.max_passage_tokens=24"]


def settings_for(data: Path, index: str) -> Settings:
    return load_settings("quickstart-cpu", overrides(data, index))


@pytest.fixture
def start_build(data: Path, service_environment: dict[str, str]) -> StartBuild:
    """A function that builds the index of a name in a process of its own."""

    def start(passages: Path, index: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", BUILD, str(passages), *overrides(data, index)],
            cwd=REPOSITORY,
            env=service_environment,
            stderr=subprocess.DEVNULL,
        )

    return start


def kill_after(build: subprocess.Popen[bytes], shards: Path, finished: int, further_seconds: float) -> None:
    """Kill -9 at a moment after so many shards have appeared."""
    deadline = time.monotonic() + 60
    while len(list(shards.glob("*.npy"))) < finished:
        assert build.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    try:
        build.wait(timeout=further_seconds)
        pytest.fail("the build ended before it could be killed")
    except subprocess.TimeoutExpired:
        build.send_signal(signal.SIGKILL)
        build.wait()


def vectors_of(index: Path) -> np.ndarray:
    flat = faiss.read_index(str(index / "vectors.faiss"))
    return flat.reconstruct_n(0, flat.ntotal)


def test_a_build_killed_twice_ends_like_an_unbroken_one(
    data: Path, data_dir: Path, tmp_path: Path, start_build: StartBuild
) -> None:
    passages = slice_of_corpus(data_dir, tmp_path / "passages.jsonl", 1000)
    shards = data / "indexes" / ".killed.building" / "shards"
    for finished in (1, 2):
        kill_after(start_build(passages, "killed"), shards, finished, random.uniform(0.0, 0.15))
        assert not (data / "indexes" / "killed").exists(), "nothing is published half-done"
    resumed = start_build(passages, "killed")
    assert resumed.wait(timeout=60) == 0

    unbroken = build_index(settings_for(data, "unbroken"), passages)
    killed = data / "indexes" / "killed"
    np.testing.assert_array_equal(vectors_of(killed), vectors_of(unbroken))
    for name in ("vectors.faiss", "passages.arrow"):
        assert (killed / name).read_bytes() == (unbroken / name).read_bytes()
    assert read_manifest(killed).recipe == read_manifest(unbroken).recipe
    assert sorted(path.name for path in killed.iterdir()) == [
        "manifest.json",
        "passages.arrow",
        "vectors.faiss",
    ]
    assert sorted(path.name for path in (data / "indexes").iterdir() if path.is_dir()) == ["killed", "unbroken"]


def test_an_index_is_kept_while_it_fits_and_replaced_when_the_corpus_changes(
    data: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(data, "small")
    passages = slice_of_corpus(data_dir, tmp_path / "passages.jsonl", 12)
    index = build_index(settings, passages)
    built = read_manifest(index)
    written = (index / "vectors.faiss").stat().st_mtime_ns
    assert build_index(settings, passages) == index
    assert "is up to date" in capsys.readouterr().err
    assert (index / "vectors.faiss").stat().st_mtime_ns == written

    checkpoint = open_checkpoint(settings.encoder.name, data)
    in_service = SearchIndex(index.name, index, checkpoint, settings.encoder, threads=1)
    build_index(settings, slice_of_corpus(data_dir, passages, 9, start=100))
    assert read_manifest(index).count == 9
    assert read_manifest(index).revision != built.revision
    assert len(in_service.passages) == 12, "who serves the old index goes on serving it whole"
    assert in_service.passages.record(11)["id"] == "11"
    assert in_service.dense.search(vectors_of(index)[:1], 12)[1].shape == (1, 12)

    (index / "vectors.faiss").unlink()
    build_index(settings, passages)
    assert len(vectors_of(index)) == 9


def test_two_builds_of_one_index_do_not_meet(
    data: Path, data_dir: Path, tmp_path: Path, start_build: StartBuild
) -> None:
    passages = slice_of_corpus(data_dir, tmp_path / "passages.jsonl", 1000)
    first = start_build(passages, "contended")
    try:
        shards = data / "indexes" / ".contended.building" / "shards"
        deadline = time.monotonic() + 60
        while not shards.is_dir():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ConfigurationError, match="another build"):
            build_index(settings_for(data, "contended"), passages)
    finally:
        first.kill()
        first.wait()


def test_passages_that_are_missing_or_broken_are_named(data: Path, tmp_path: Path) -> None:
    settings = settings_for(data, "broken")
    with pytest.raises(AssetError, match="there are no passages at"):
        build_index(settings, tmp_path / "nothing.jsonl")
    passages = tmp_path / "passages.jsonl"
    passages.write_text("")
    with pytest.raises(AssetError, match="nothing to index"):
        build_index(settings, passages)
    passages.write_text('{"id": "1", "title": "A", "text": "a"}\n{"id": "2"}\n')
    with pytest.raises(AssetError, match=r"passages\.jsonl: record 2 has neither"):
        build_index(settings, passages)
