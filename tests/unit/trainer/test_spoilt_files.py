"""What a power cut or a full disk spoils in a run directory is named, and the rest is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from apps.inspect.read import RunEpisodes
from research.errors import AssetError
from research.weights.run_weights import delete_quality_after, versions
from services.trainer.api.app import create_app
from services.trainer.controller import RunController
from services.trainer.evaluation.report import write_report
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.run_dir.checkpoints import CheckpointStore
from services.trainer.run_dir.references import References
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.weights.publisher import Publisher
from services.trainer.weights.replicas import Replicas
from services.trainer.weights.weight_sync import DiskSync
from tests.support.tiny_model import tiny_settings
from tests.unit.trainer.test_run_dir import entry, figures

SPOILT = {
    "zeros": b"\0" * 300,
    "half a line": b'{"step": 2, "rew',
    "no UTF-8": b'{"step": 2, "note": "\xff\xfe"}',
    "deep": b"[" * 200_000,
    "no object": b"7",
    "no step": b"{}",
}


@pytest.fixture(params=SPOILT)
def spoilt(request: pytest.FixtureRequest) -> bytes:
    return SPOILT[request.param]


def lines_of(record: RunDirectory, *lines: bytes) -> Path:
    path = record.directory / "metrics.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def test_a_line_of_the_metrics_is_left_out_and_named_once(
    tmp_path: Path, spoilt: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    record = RunDirectory(tmp_path)
    path = lines_of(record, json.dumps(entry(1)).encode(), spoilt, json.dumps(entry(3)).encode())
    assert [each["step"] for each in record.metrics()] == [1, 3] == [each["step"] for each in record.metrics()]
    assert caplog.text.count(f"{path}:2 is spoilt") == 1
    assert record.last_step() == 3
    record.delete_steps_after(1)
    assert path.read_bytes() == json.dumps(entry(1)).encode() + b"\n"


def test_half_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    record = RunDirectory(tmp_path)
    lines_of(record, json.dumps(entry(1)).encode()).open("ab").write(b'{"step": 2, "re')
    record.add_metrics(entry(2))
    assert [each["step"] for each in record.metrics()] == [1, 2]


@pytest.mark.parametrize("content", [b"", b"\0" * 20, b'{"one_hop": {"n": 8', b"[]", b"\xff"])
def test_files_of_a_run_are_left_out_and_the_pages_answer(tmp_path: Path, content: bytes) -> None:
    settings = tiny_settings(tmp_path)
    record = RunDirectory(settings.run_dir)
    record.open(settings)
    record.add_metrics(entry(1) | {"stop_reasons": {"answered": 8}})
    record.write_evaluation("before", [], figures(0.5))
    for name in (
        "summary.json",
        "left_out.json",
        "quality.json",
        "evaluations/after.json",
        "evaluations/before.jsonl.gz",
    ):
        (record.directory / name).write_bytes(content)
    assert not record.is_finished(1)
    assert record.evaluation("after") is None
    assert record.answers("before") == []
    record.write_left_out("questions.train", {"q": "too long"})
    assert json.loads((record.directory / "left_out.json").read_text()) == {"questions.train": {"q": "too long"}}
    with TestClient(create_app(RunController(settings), record)) as client:
        found = {path: client.get(path) for path in ("/steps", "/evaluations", "/metrics", "/status")}
    assert {path: answer.status_code for path, answer in found.items()} == dict.fromkeys(found, 200)
    assert list(found["/evaluations"].json()) == ["before"]
    write_report(record, {"rollout": 1.0})
    assert record.is_finished(1)


@pytest.mark.parametrize("content", [b"", b"\0\0", b"{", b"[]", b"\xff"])
def test_settings_that_cannot_be_read_say_what_to_do(tmp_path: Path, content: bytes) -> None:
    settings = tiny_settings(tmp_path)
    record = RunDirectory(settings.run_dir)
    record.open(settings)
    config = record.directory / "config.json"
    config.write_bytes(content)
    with pytest.raises(AssetError, match=r"config\.json is spoilt .*delete it if the settings are still those"):
        record.open(settings)
    inspected = RunEpisodes(record.directory)
    assert (inspected.config, inspected.sources()) == ({}, [])
    assert "config.json is spoilt" in inspected.problems[0]
    config.unlink()
    record.open(settings)


STRANGE = (
    "evaluations/step-abc.json",
    "evaluations/step-.jsonl.gz",
    "episodes/step-old.jsonl.gz",
    "episodes/step-x.journal.jsonl",
    "weights/version-old/model.safetensors",
    "weights/version-²/model.safetensors",
    "checkpoints/step-abc/state.json",
    "checkpoints/reference-old/manifest.json",
)


def test_files_of_strange_names_are_nobodys(tmp_path: Path) -> None:
    for name in STRANGE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "quality.json").write_text('{"old": {}, "3": {}, "9": {}}')
    record = RunDirectory(tmp_path)
    record.delete_steps_after(0)
    EpisodeJournal(record.episodes_dir).delete_after(0)
    EpisodeJournal(record.episodes_dir).close(9)
    assert versions(tmp_path / "weights") == []
    Publisher(tmp_path, tmp_path / "weights", Replicas([], DiskSync(), print), "")._prune(range(1, 3))
    store = CheckpointStore(record.checkpoints_dir, 1)
    learner: Any = None  # there is nothing to restore
    assert (store.all(), store.restore_latest(learner)) == ([], None)
    assert References(record.checkpoints_dir)._finished() == []
    assert [source.name for source in RunEpisodes(tmp_path).sources()] == ["evaluation step-"]
    delete_quality_after(tmp_path, 3)
    assert json.loads((tmp_path / "quality.json").read_text()) == {"3": {}}
    assert all((tmp_path / name).exists() for name in STRANGE)
