"""Building an index with the real encoder: killed, resumed, repeated, replaced."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
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

from research.config import load_settings
from research.errors import AssetError, ConfigurationError
from research.passages import iter_passages, write_passages
from research.settings import Settings
from services.retriever.build import build
from services.retriever.build.build import build_index
from services.retriever.encoder.checkpoint import open_checkpoint
from services.retriever.index.manifest import read_manifest
from services.retriever.index.search_index import SearchIndex
from tests.support.forked import Forked

StartBuild = Callable[..., Forked]
BUILD = """
import sys
from pathlib import Path
from research.config import load_settings
from services.retriever.build.build import build_index
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


# Lists, codes, full vectors and words: many files, so that a kill may find one half-written.
WRITTEN_LONGER = ("corpus.index_type=ivf-pq", "corpus.hybrid=true")


def overrides(data: Path, index: str, *more: str) -> list[str]:
    # Short passages: what is tested does not depend on their length, the time does.
    return [f"paths.data={data}", f"corpus.index={index}", "encoder.max_passage_tokens=24", *more]


def settings_for(data: Path, index: str, *more: str) -> Settings:
    return load_settings("quickstart-cpu", overrides(data, index, *more))


@pytest.fixture
def start_build(data: Path, service_environment: dict[str, str], tmp_path: Path) -> StartBuild:
    """A function that builds the index of a name in a process of its own."""

    def start(passages: Path, index: str, *more: str) -> Forked:
        return Forked(
            ["-c", BUILD, str(passages), *overrides(data, index, *more)], tmp_path / "log", service_environment
        )

    return start


def vectors_of(index: Path) -> np.ndarray:
    flat = faiss.read_index(str(index / "vectors.faiss"))
    return flat.reconstruct_n(0, flat.ntotal)


def await_work(build: Forked, work: Path) -> None:
    """Return when the build begins to work, or has ended."""
    started = time.time_ns()

    def begun() -> bool:
        # Every build writes its plan anew when its work begins.
        with contextlib.suppress(FileNotFoundError):
            return (work / "plan.json").stat().st_mtime_ns > started
        return False

    while build.poll() is None and not begun():
        time.sleep(0.005)


def kill_at_a_random_moment(build: Forked, work: Path, span: float) -> bool:
    """Kill -9 within `span` seconds of its first sign of work; False if it ended before."""
    await_work(build, work)
    try:
        build.wait(timeout=random.uniform(0, span))
        return False
    except subprocess.TimeoutExpired:
        build.send_signal(signal.SIGKILL)
        build.wait()
        return True


def test_a_build_killed_ten_times_ends_like_an_unbroken_one(
    data: Path, data_dir: Path, tmp_path: Path, start_build: StartBuild
) -> None:
    passages = slice_of_corpus(data_dir, tmp_path / "passages.jsonl", 1500)
    # In a process of its own, as the others: the number of threads decides the last bits of a centroid.
    whole = start_build(passages, "unbroken", *WRITTEN_LONGER)
    await_work(whole, data / "indexes" / ".unbroken.building")
    begun = time.monotonic()
    assert whole.wait(timeout=900) == 0
    unbroken, span = data / "indexes" / "unbroken", time.monotonic() - begun
    killed, work = data / "indexes" / "killed", data / "indexes" / ".killed.building"
    kills = 0
    for _ in range(100):
        if kills == 10:
            break
        # Most of the work is done by an earlier try, so the later kills come while files are written and published.
        if kill_at_a_random_moment(start_build(passages, "killed", *WRITTEN_LONGER), work, span / (1 + kills % 3 * 3)):
            kills += 1
            if killed.exists():
                assert read_manifest(killed).count == 1500, "nothing is published half-done"
        else:
            shutil.rmtree(killed)
    assert kills == 10
    assert start_build(passages, "killed", *WRITTEN_LONGER).wait(timeout=600) == 0

    files = sorted(path.relative_to(unbroken) for path in unbroken.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(killed) for path in killed.rglob("*") if path.is_file())
    for file in files:
        if file.name != "manifest.json":
            assert (killed / file).read_bytes() == (unbroken / file).read_bytes(), file
    assert read_manifest(killed).recipe == read_manifest(unbroken).recipe
    left = sorted(path.name for path in (data / "indexes").iterdir() if path.is_dir())
    assert left == ["killed", "unbroken"]


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


def test_a_build_in_passing_drops_nobody_elses_work(data: Path, data_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(data, "passing")
    passages = slice_of_corpus(data_dir, tmp_path / "passages.jsonl", 12)
    index = build_index(settings, passages, in_passing=True)
    work = index.with_name(".passing.building")
    (work / "shards").mkdir(parents=True)
    recipe = read_manifest(index).recipe.model_dump()
    other = {"recipe": recipe, "backend": "torch of elsewhere", "shard": 256, "milvus": "", "build_id": "1"}
    (work / "plan.json").write_text(json.dumps(other))
    (work / "shards" / "0000000000.npy").touch()
    build_index(settings, passages, in_passing=True)
    assert (work / "shards" / "0000000000.npy").exists()
    others = slice_of_corpus(data_dir, tmp_path / "others.jsonl", 9, start=100)
    with pytest.raises(ConfigurationError, match=r"corpus\.name: other passages"):
        build_index(settings, others, in_passing=True)
    assert read_manifest(index).count == 12
    build_index(settings, passages)
    assert not work.exists(), "whoever asks for a build outright has it clean"


def test_two_builds_of_one_index_do_not_meet(
    data: Path, data_dir: Path, tmp_path: Path, start_build: StartBuild
) -> None:
    passages = slice_of_corpus(data_dir, tmp_path / "passages.jsonl", 1000)
    first = start_build(passages, "contended")
    try:
        shards = data / "indexes" / ".contended.building" / "shards"
        deadline = time.monotonic() + 300
        while not shards.is_dir():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ConfigurationError, match="another build"):
            build_index(settings_for(data, "contended"), passages)
    finally:
        first.kill()
        first.wait()


def test_a_power_cut_loses_nothing_of_what_stands_under_the_final_name(
    data: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not synced may be lost: so each file must be on the disk before its manifest, as it is at the end."""
    synced: dict[int, bytes] = {}
    folders: set[int] = set()
    at_manifest: dict[int, bytes] = {}
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        found = os.fstat(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            folders.add(found.st_ino)
        else:
            if path.name.startswith("manifest.json"):
                at_manifest.update(synced)
            synced[found.st_ino] = path.read_bytes()

    monkeypatch.setattr(os, "fsync", fsync)
    passages = slice_of_corpus(data_dir, tmp_path / "passages.jsonl", 500)
    index = build_index(settings_for(data, "synced", *WRITTEN_LONGER), passages)
    for path in [index, *index.rglob("*")]:
        if path.is_dir():
            assert path.stat().st_ino in folders, path
        elif path.name != "manifest.json":
            assert at_manifest.get(path.stat().st_ino) == path.read_bytes(), path
    assert index.parent.stat().st_ino in folders, "the name itself"
    assert set(read_manifest(index).files or {}) == {
        str(path.relative_to(index)) for path in index.rglob("*") if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.parametrize("content", [lambda old: old[:1000], lambda old: bytes(len(old))], ids=["cut", "zeros"])
def test_an_unfinished_build_that_is_spoilt_replaces_no_good_index(
    data: Path,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: Callable[[bytes], bytes],
) -> None:
    settings = settings_for(data, "served")
    passages = slice_of_corpus(data_dir, tmp_path / "passages.jsonl", 12)
    index = build_index(settings, passages)
    good = (index / "vectors.faiss").read_bytes()
    slice_of_corpus(data_dir, passages, 9, start=100)
    with monkeypatch.context() as patched:
        # As a kill just before the renames.
        patched.setattr(build, "_publish", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            build_index(settings, passages)
    assert (index / "vectors.faiss").read_bytes() == good
    spoilt = index.with_name(".served.building") / "index" / "vectors.faiss"
    spoilt.write_bytes(content(spoilt.read_bytes()))
    capsys.readouterr()
    build_index(settings, passages)
    assert "the index is written again" in capsys.readouterr().err
    checkpoint = open_checkpoint(settings.encoder.name, data)
    assert len(SearchIndex("served", index, checkpoint, settings.encoder, threads=1).passages) == 9
    # And one that is spoilt once it is published is built again.
    (index / "vectors.faiss").write_bytes(content((index / "vectors.faiss").read_bytes()))
    build_index(settings, passages)
    SearchIndex("served", index, checkpoint, settings.encoder, threads=1)


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
