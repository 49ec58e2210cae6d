"""What stands under its final name survives a power cut, whole."""

from __future__ import annotations

import json
from pathlib import Path

from research.atomic_io import atomic_directory, write_json
from research.weights.checksummed_dir import atomic_checksummed_dir, corruption_in
from services.trainer.run_dir.run_dir import RunDirectory
from tests.support.power_cut import watched
from tests.unit.trainer.test_run_dir import entry, figures


def test_a_file_written_atomically_is_there_with_its_name(tmp_path: Path) -> None:
    with watched(tmp_path) as disk:
        write_json(tmp_path / "a.json", {"version": 1})
        assert json.loads(disk.after_a_cut()["a.json"]) == {"version": 1}
        write_json(tmp_path / "a.json", {"version": 2})
        assert json.loads(disk.after_a_cut()["a.json"]) == {"version": 2}


def test_a_directory_is_there_with_all_that_is_in_it(tmp_path: Path) -> None:
    with watched(tmp_path) as disk:
        with atomic_directory(tmp_path / "new" / "model") as partial:
            (partial / "1_Pooling").mkdir()
            (partial / "1_Pooling" / "config.json").write_text("{}")
            (partial / "model.safetensors").write_bytes(b"weights")
        left = disk.after_a_cut()
    assert left == {"new/model/1_Pooling/config.json": b"{}", "new/model/model.safetensors": b"weights"}


def test_published_weights_are_there_with_their_checksums(tmp_path: Path) -> None:
    with watched(tmp_path) as disk:
        with atomic_checksummed_dir(tmp_path / "run" / "weights" / "version-000001") as partial:
            (partial / "model.safetensors").write_bytes(b"weights")
        left = disk.after_a_cut()
    assert left["run/weights/version-000001/model.safetensors"] == b"weights"
    for name, content in left.items():
        target = tmp_path / "after" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    assert corruption_in(tmp_path / "after" / "run" / "weights" / "version-000001") is None


def test_the_record_of_a_finished_step_is_there(tmp_path: Path) -> None:
    with watched(tmp_path) as disk:
        record = RunDirectory(tmp_path)
        record.add_metrics(entry(1))
        record.add_metrics(entry(2))
        record.write_evaluation("before", [], figures(0.5))
        left = disk.after_a_cut()
    assert [json.loads(line)["step"] for line in left["metrics.jsonl"].splitlines()] == [1, 2]
    assert "one_hop" in json.loads(left["evaluations/before.json"])
