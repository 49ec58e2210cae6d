"""Importing indexes of others, with the real encoder: served as FAISS serves them, converted, killed, refused."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from research.config import load_settings
from research.errors import AssetError, ConfigurationError
from research.settings import Settings
from services.retriever.build import encoder_check, faiss_import, recall
from services.retriever.build.build import build_index
from services.retriever.build.recall import evaluate_index
from services.retriever.encoder.checkpoint import open_checkpoint
from services.retriever.encoder.encoder import load_encoder
from services.retriever.index.manifest import Imported, read_manifest
from services.retriever.index.vector_index import write_dense
from services.retriever.types import Vectors
from tests.conftest import Launch
from tests.support.foreign_index import TOKENS, Foreign, embed, make_foreign, searched, write_index
from tests.support.forked import Forked, run

COUNT = 600
TOP_K = 7
QUERIES = ["painter of The Starry Night", "capital of France", "largest planet", "who wrote Hamlet", "a gas", "war"]
# Keeps what is filled so far every few hundred vectors, as it does every million.
IMPORT = """
import sys
from pathlib import Path
from research.config import load_settings
from services.retriever.build import encoder_check, imported_vectors, recall
from services.retriever.build.build import build_index
from services.retriever.index import vector_index
recall._SAMPLED_TITLES, encoder_check._SAMPLED, encoder_check.usable_cores = 100, 16, lambda: 1
vector_index.KEPT_EVERY = 300
imported_vectors.BLOCK_BYTES = 200 * 4 * 384
build_index(load_settings("quickstart-cpu", sys.argv[3:]), Path(sys.argv[2]), Path(sys.argv[1]))
"""


@pytest.fixture(scope="module", autouse=True)
def _less_to_embed() -> Iterator[None]:
    """Fewer titles and passages; and by one thread, for on a busy machine two wait for each other."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recall, "_SAMPLED_TITLES", 100)
        patched.setattr(encoder_check, "_SAMPLED", 16)
        patched.setattr(encoder_check, "usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A data directory with the real models and no index yet."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "models").symlink_to(data_dir / "models")
    return directory


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Foreign:
    return make_foreign(data_dir, tmp_path_factory.mktemp("foreign"), COUNT)


@pytest.fixture
def flat(tmp_path: Path, foreign: Foreign) -> Path:
    return foreign.write(tmp_path / "e5_Flat.index")


def overrides(data: Path, index: str, *more: str) -> list[str]:
    return [f"paths.data={data}", f"corpus.index={index}", f"encoder.max_passage_tokens={TOKENS}", *more]


def settings_for(data: Path, index: str, *more: str) -> Settings:
    return load_settings("quickstart-cpu", overrides(data, index, *more))


def imported(index: Path) -> Imported:
    noted = read_manifest(index).imported
    assert noted is not None
    return noted


KINDS = {
    "flat": ("Flat", faiss.METRIC_INNER_PRODUCT),
    "flat-l2": ("Flat", faiss.METRIC_L2),
    "ivf": ("IVF16,Flat", faiss.METRIC_INNER_PRODUCT),
    "hnsw": ("HNSW16,Flat", faiss.METRIC_INNER_PRODUCT),
    "pq": ("PQ24x4", faiss.METRIC_INNER_PRODUCT),
    "ivfpq": ("IVF16,PQ24x4", faiss.METRIC_L2),
    "opq": ("OPQ24,IVF16,PQ24x4", faiss.METRIC_INNER_PRODUCT),
    "idmap": ("IDMap,SQ8", faiss.METRIC_INNER_PRODUCT),
}


@pytest.fixture(scope="module")
def kept(data: Path, foreign: Foreign, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of all kinds, each imported as it is under the name of its kind."""
    files = {}
    with pytest.MonkeyPatch.context() as patched:
        # Of codes the sample is embedded in eighteen ways.
        patched.setattr(encoder_check, "_SAMPLED", 16)
        for name, (factory, metric) in KINDS.items():
            files[name] = foreign.write(tmp_path_factory.mktemp(name) / "their.index", factory, metric=metric)
            build_index(settings_for(data, name), foreign.passages, files[name], keep=True)
    return files


def test_what_is_kept_answers_as_faiss_itself(data: Path, kept: dict[str, Path], launch: Launch) -> None:
    """Through the real service: the same ids in the same order, and the same scores to the last bit."""
    settings = settings_for(data, "flat")
    encoder = load_encoder(
        open_checkpoint(settings.encoder.name, data), settings.encoder, settings.encoder.backend, 1, data
    )
    # One by one, as the service gets them: with int8 a vector depends on its batch.
    queries = np.concatenate([encoder.encode_queries([text]) for text in QUERIES])
    others = json.dumps([name for name in kept if name != "flat"])
    server = launch("retriever", *overrides(data, "flat", f"retriever.indexes={others}"))
    with server.client() as client:
        for name, file in kept.items():
            for text, (ids, scores) in zip(QUERIES, searched(file, queries, TOP_K), strict=True):
                answer = client.post("/search", json={"query": text, "top_k": TOP_K, "index": name}).json()
                [hits] = answer["results"]
                assert [int(hit["id"]) for hit in hits] == ids, (name, text)
                # Distances become the inner products of unit vectors that they stand for, so that more is better.
                distances = KINDS[name][1] == faiss.METRIC_L2
                wanted = [float(1 - np.float32(score) / 2) if distances else score for score in scores]
                assert [hit["score"] for hit in hits] == wanted, (name, text)


def test_the_manifest_of_what_is_kept_says_what_it_is(data: Path, kept: dict[str, Path]) -> None:
    flat, codes = imported(data / "indexes" / "flat"), imported(data / "indexes" / "ivfpq")
    assert (flat.file, flat.kind) == ("their.index", "IndexFlatIP")
    assert (flat.metric, flat.text) == ("inner product", "contents")
    assert flat.cosine > 0.999
    assert flat.recall == {1: 1.0, 5: 1.0, 10: 1.0}
    assert (codes.kind, codes.metric, codes.recall) == ("IndexIVFPQ", "L2", None)
    assert 0.5 < min((imported(data / "indexes" / "hnsw").recall or {}).values()) <= 1
    [row] = evaluate_index(settings_for(data, "hnsw"), None)
    assert row.at == tuple((imported(data / "indexes" / "hnsw").recall or {}).values())
    for name, file in kept.items():
        assert (data / "indexes" / name / "vectors.faiss").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "HNSW16,Flat"])
def test_what_is_converted_finds_nearly_what_the_flat_index_finds(
    data: Path, foreign: Foreign, tmp_path: Path, factory: str
) -> None:
    name = "converted-" + factory.split(",")[0].lower()
    file = foreign.write(tmp_path / "their.index", factory)
    settings = settings_for(data, name, "corpus.index_type=ivf-rabitq", "corpus.hybrid=true")
    index = build_index(settings, foreign.passages, file)
    manifest = read_manifest(index)
    assert manifest.structure is not None
    assert manifest.structure.name == "ivf-rabitq"
    np.testing.assert_array_equal(np.load(index / "vectors.f16.npy"), foreign.vectors.astype(np.float16))
    recall = imported(index).recall
    assert recall is not None
    assert min(recall.values()) > 0.9
    # The manifest's figures are those of `--evaluate`, which compares with the vectors beside the structure.
    [row] = evaluate_index(settings, None)
    np.testing.assert_allclose(row.at, tuple(recall.values()), atol=0.02)


def test_an_import_killed_at_each_file_ends_like_an_unbroken_one(
    data: Path, foreign: Foreign, flat: Path, service_environment: dict[str, str], tmp_path: Path
) -> None:
    def start(index: str) -> Forked:
        more = overrides(data, index, "corpus.index_type=ivf-rabitq", "corpus.hybrid=true")
        return Forked(["-c", IMPORT, str(flat), str(foreign.passages), *more], tmp_path / "log", service_environment)

    # In a process of its own, as the others: the number of threads decides the last bits of a centroid.
    assert start("unbroken").wait(timeout=300) == 0
    unbroken, killed = data / "indexes" / "unbroken", data / "indexes" / "killed"
    work = data / "indexes" / ".killed.building"
    for file in ("index/passages.arrow", "filling-*.faiss", "index/vectors.faiss", "index/vectors.f16.npy"):
        # Who is held up between the sight of a file and the kill comes too late: then once more, from the beginning.
        for _ in range(5):
            running = start("killed")
            while running.poll() is None and not list(work.glob(file)):
                time.sleep(0.002)
            running.send_signal(signal.SIGKILL)
            running.wait()
            if not killed.exists():
                break
            shutil.rmtree(killed)
        assert running.returncode == -signal.SIGKILL, file
        assert list(work.glob(file)), file
        assert not killed.exists(), "nothing is published half-done"
    passages = (work / "index" / "passages.arrow").stat().st_ino
    assert start("killed").wait(timeout=300) == 0
    assert (killed / "passages.arrow").stat().st_ino == passages, "they are not copied again"
    assert same_files(unbroken, killed)
    assert read_manifest(killed).recipe == read_manifest(unbroken).recipe
    assert imported(killed) == imported(unbroken)
    assert not list((data / "indexes").glob(".*.building"))


def same_files(one: Path, other: Path) -> bool:
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in files:
        if file.name != "manifest.json":
            assert (one / file).read_bytes() == (other / file).read_bytes(), file
    return True


def test_an_imported_index_is_kept_by_a_build_and_replaced_by_another_import(
    data: Path, foreign: Foreign, flat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(data, "again")
    index = build_index(settings, foreign.passages, flat)
    revision = read_manifest(index).revision
    written = (index / "vectors.faiss").stat().st_mtime_ns
    capsys.readouterr()
    for again in (flat, None):
        build_index(settings, foreign.passages, again)
        assert f"is up to date (revision {revision})" in capsys.readouterr().err
    assert (index / "vectors.faiss").stat().st_mtime_ns == written
    # One that is spoilt, or for other settings, is not embedded anew unasked.
    refused = r"was imported from e5_Flat\.index.*`research index --import`"
    with pytest.raises(AssetError, match=refused):
        build_index(settings_for(data, "again", "corpus.hybrid=true"), foreign.passages)
    (index / "vectors.faiss").write_bytes((index / "vectors.faiss").read_bytes()[:-1000])
    with pytest.raises(AssetError, match=refused):
        build_index(settings, foreign.passages)
    with pytest.raises(AssetError, match=r"spoilt.*import e5_Flat\.index again with `research index --import`"):
        evaluate_index(settings, None)
    build_index(settings, foreign.passages, flat, keep=True)
    assert read_manifest(index).revision != revision


def test_a_copy_that_a_kill_left_behind_is_not_made_again(
    data: Path, foreign: Foreign, flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with room for one copy has none for a second."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    settings = settings_for(data, "full")
    with monkeypatch.context() as patched:
        patched.setattr(faiss_import.CheckedImport, "measured", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(settings, foreign.passages, flat, keep=True)
    free = shutil.disk_usage(data)._replace(free=flat.stat().st_size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    index = build_index(settings, foreign.passages, flat, keep=True)
    assert (index / "vectors.faiss").read_bytes() == flat.read_bytes()
    with pytest.raises(AssetError, match=rf"only {free.free} are free"):
        build_index(settings_for(data, "fuller"), foreign.passages, flat, keep=True)


def test_vectors_of_other_lengths_are_kept_and_not_converted(data: Path, foreign: Foreign, tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).uniform(0.5, 2, COUNT).astype(np.float32)
    long = foreign.vectors * lengths[:, None]
    file = write_index(tmp_path / "long.index", long)
    settings = settings_for(data, "lengths")
    with pytest.raises(AssetError, match=r"long\.index: vector \d+ has length .*add --keep"):
        build_index(settings, foreign.passages, file)
    index = build_index(settings, foreign.passages, file, keep=True)
    assert imported(index).recall == {1: 1.0, 5: 1.0, 10: 1.0}
    by_distance = write_index(tmp_path / "l2.index", long, metric=faiss.METRIC_L2)
    with pytest.raises(AssetError, match=r"l2\.index: vector \d+ has length") as refusal:
        build_index(settings, foreign.passages, by_distance, keep=True)
    assert "--keep" not in str(refusal.value)
    # Of codes the sample must tell: most of these have length 1.
    some_long = foreign.vectors * np.where(np.arange(COUNT) % 4, 1, 2).astype(np.float32)[:, None]
    codes = write_index(tmp_path / "codes.index", some_long, "IVF16,PQ24x4", metric=faiss.METRIC_L2)
    with pytest.raises(AssetError, match=r"codes\.index: of 16 sampled vectors only \d\d% have a length near 1"):
        build_index(settings, foreign.passages, codes, keep=True)


def test_passages_and_vectors_that_do_not_belong_together_are_refused(
    data: Path, foreign: Foreign, flat: Path, tmp_path: Path
) -> None:
    settings = settings_for(data, "numbers")
    rows = gzip.decompress(foreign.passages.read_bytes()).splitlines(keepends=True)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_bytes(b"".join(rows[:-1]))
    with pytest.raises(AssetError, match=r"e5_Flat\.index has 600 vectors, and .*fewer\.jsonl has 599 passages"):
        build_index(settings, fewer, flat)
    more = tmp_path / "more.jsonl"
    more.write_bytes(b"".join([*rows, rows[0]]))
    with pytest.raises(AssetError, match=r"more\.jsonl has 601 passages"):
        build_index(settings, more, flat)
    turned = tmp_path / "turned.jsonl"
    turned.write_bytes(b"".join(reversed(rows)))
    with pytest.raises(AssetError, match=r"the encoder seems to be the right one.*in the order of its vectors"):
        build_index(settings, turned, flat)
    assert not [path for path in settings.index_dir.parent.glob("*numbers*") if path.is_dir()], "passages take room"


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda data, texts: embed(data, ["query: " + text for text in texts]), "set encoder.passage_prefix='query: '"),
        (lambda data, texts: embed(data, texts), "set encoder.passage_prefix=''"),
        (
            lambda data, texts: embed(data, ["passage: " + text for text in texts], "cls"),
            r"set cls pooling in .*1_Pool",
        ),
    ],
)
def test_another_prefix_or_pooling_is_named(
    data: Path,
    data_dir: Path,
    foreign: Foreign,
    tmp_path: Path,
    made: Callable[[Path, list[str]], Vectors],
    named: str,
) -> None:
    rows = gzip.decompress(foreign.passages.read_bytes()).splitlines(keepends=True)[:120]
    passages = tmp_path / "some.jsonl"
    passages.write_bytes(b"".join(rows))
    vectors = made(data_dir, [json.loads(row)["contents"] for row in rows])
    for factory in ("Flat", "IVF2,PQ24x4"):
        file = write_index(tmp_path / "other.index", vectors, factory)
        with pytest.raises(AssetError, match=named) as refusal:
            build_index(settings_for(data, "prefix"), passages, file, keep=factory != "Flat")
        assert "encoder.passage_prefix='passage: ' and mean pooling" in str(refusal.value)
        assert str(file) in str(refusal.value)


def test_another_encoder_is_refused(data: Path, foreign: Foreign, tmp_path: Path) -> None:
    settings = settings_for(data, "other")
    # Of the same size, and of another space.
    order = np.random.default_rng(0).permutation(foreign.vectors.shape[1])
    file = write_index(tmp_path / "other.index", np.ascontiguousarray(foreign.vectors[:, order]))
    with pytest.raises(AssetError, match=r"other\.index.* set encoder\.name to the encoder that made the index"):
        build_index(settings, foreign.passages, file)
    narrow = write_index(tmp_path / "narrow.index", np.ascontiguousarray(foreign.vectors[:, :96]))
    with pytest.raises(AssetError, match=r"narrow\.index has vectors of size 96, .* size 384; set encoder\.name"):
        build_index(settings, foreign.passages, narrow)


def test_what_cannot_be_imported_is_named(data: Path, foreign: Foreign, tmp_path: Path) -> None:
    settings = settings_for(data, "refused")
    with pytest.raises(AssetError, match=r"none\.index \(No such file"):
        build_index(settings, foreign.passages, tmp_path / "none.index")
    codes = foreign.write(tmp_path / "codes.index", "IVF16,PQ24x4")
    with pytest.raises(AssetError, match=r"an IndexIVFPQ has codes instead of its vectors.*add --keep"):
        build_index(settings, foreign.passages, codes)
    empty = tmp_path / "empty.index"
    faiss.write_index(faiss.IndexFlatIP(384), str(empty))
    with pytest.raises(AssetError, match="holds no vectors"):
        build_index(settings, foreign.passages, empty)
    milvus = settings_for(data, "refused", f"corpus.milvus={tmp_path / 'vectors.db'}")
    with pytest.raises(ConfigurationError, match="leave out --keep"):
        build_index(milvus, foreign.passages, codes, keep=True)


def test_an_index_that_changes_while_it_is_read_is_not_published(
    data: Path, foreign: Foreign, flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.retriever.build import index_writer

    def change(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        flat.touch()

    real = write_dense
    monkeypatch.setattr(index_writer, "write_dense", change)
    settings = settings_for(data, "changing")
    with pytest.raises(AssetError, match=r"e5_Flat\.index changed while it was read"):
        build_index(settings, foreign.passages, flat)
    assert not settings.index_dir.exists()


def test_the_command_imports_and_says_what_is_missing(
    data: Path, foreign: Foreign, flat: Path, service_environment: dict[str, str]
) -> None:
    def research(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(["index", *arguments, *overrides(data, "commanded")], service_environment)

    done = research("--import", str(flat), "--passages", str(foreign.passages))
    assert done.returncode == 0, done.stderr
    assert "recall against exact search in e5_Flat.index: 1.000 at 1" in done.stderr
    assert read_manifest(data / "indexes" / "commanded").count == COUNT
    for arguments, named in (
        (["--import", str(flat)], "--passages"),
        (["--keep"], "--import"),
        (["--import", str(flat), "--passages", str(foreign.passages), "--evaluate"], "import first"),
    ):
        refused = research(*arguments)
        assert refused.returncode == 2
        assert named in refused.stderr
