"""Which cells the fault bench runs, that its seeds repeat, and that its judge sees what is lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from benchmarks.faults.cells import Ledger, Outcome, cells
from benchmarks.faults.damage import spoil_file
from benchmarks.faults.kinds import KINDS, PHASES
from benchmarks.faults.record import Record
from benchmarks.faults.report import report
from research.weights.checksummed_dir import atomic_checksummed_dir


def test_the_table_has_every_kind_in_every_phase_and_ten_kills_of_each_service() -> None:
    once = {(cell.kind.name, cell.phase) for cell in cells([], seed=1, times=1)}
    assert len({name for name, _ in once}) >= 12
    assert len(once) == len({kind.name for kind in KINDS}) * len(PHASES)
    for target in ("policy", "retriever", "trainer"):
        assert len(list(cells(["SIGKILL", target], seed=1, times=10))) == 10 * len(PHASES)
    assert {cell.target for cell in cells(["drip", "ROLLOUT"], seed=1, times=1)} == {"policy", "retriever"}


def test_a_seed_repeats_every_moment_and_another_meets_others() -> None:
    def drawn(seed: int) -> list[int]:
        return [cell.random().randrange(10**6) for cell in cells([], seed, times=10)]

    assert drawn(1) == drawn(1)
    assert sum(one == other for one, other in zip(drawn(1), drawn(2), strict=True)) < 5


def test_what_has_been_run_is_known_after_a_restart_and_the_last_outcome_counts(tmp_path: Path) -> None:
    cell, other = list(cells(["429"], seed=1, times=1))[:2]
    for broken in (["lost"], []):
        Ledger(tmp_path / "a.jsonl").add(
            Outcome(cell.name, cell.kind.name, cell.target, cell.phase, cell.seed, broken=broken)
        )
    ledger = Ledger(tmp_path / "a.jsonl")
    assert ledger.has(cell)
    assert not ledger.has(other)
    assert [each.broken for each in ledger.outcomes()] == [[]]
    assert "every promise held in 1 of them" in report(ledger.outcomes())


def test_a_record_tells_what_is_missing_and_what_is_spoilt(tmp_path: Path) -> None:
    (tmp_path / "episodes").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nspoilt\n{"step": 2}\n')
    for step in (1, 2):
        line = json.dumps({"group": f"{step}.0", "member": 0, "episode": {"token_ids": [step]}})
        with gzip.open(tmp_path / "episodes" / f"step-{step:06d}.jsonl.gz", "wt") as out:
            out.write(line + "\n")
    with atomic_checksummed_dir(tmp_path / "checkpoints" / "step-000002") as partial:
        (partial / "model.safetensors").write_bytes(b"w" * 1000)
    record = Record(tmp_path)
    assert record.damage(range(1, 3)) == []
    assert (record.last_step(), record.last_checkpoint()) == (2, 2)
    assert record.episodes(2) == {("2.0", 0): (2,)}

    spoil_file(tmp_path / "checkpoints" / "step-000002" / "model.safetensors")
    (tmp_path / "episodes" / "step-000001.jsonl.gz").unlink()
    wrong = " ".join(record.damage(range(1, 4)))
    for fault in ("step-000002: model.safetensors has a different checksum", "episodes of step 1 are missing"):
        assert fault in wrong
    assert "metrics: step 3 is missing" in wrong
