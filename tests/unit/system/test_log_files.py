"""Logs of services are bounded while they are written, and a restart does not erase them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.process import log_files
from services.process.log_files import KEPT, begin_log, bound_log


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(log_files, "MOST_BYTES", 1000)
    return tmp_path / "policy.log"


def test_a_restart_keeps_the_log_of_the_crash(log: Path) -> None:
    begin_log(log)  # there is none yet
    for number in range(KEPT + 2):
        log.write_text(f"crash {number}")
        begin_log(log)
        assert not log.exists()
    # The newest three, in their order.
    assert {path.name: path.read_text() for path in log.parent.iterdir()} == {
        "policy.log.1": "crash 4",
        "policy.log.2": "crash 3",
        "policy.log.3": "crash 2",
    }


def test_a_log_is_bounded_while_a_service_writes_to_it(log: Path) -> None:
    writes = "import sys; [print(f'{number:09}', flush=True) for number in range(250) if sys.stdin.readline()]"
    with (
        log.open("ab") as out,
        subprocess.Popen([sys.executable, "-c", writes], stdin=subprocess.PIPE, stdout=out) as service,
    ):
        assert service.stdin is not None
        for number in range(250):
            service.stdin.write(b"\n")
            service.stdin.flush()
            while not written(log) or written(log)[-1] < number:
                assert service.poll() is None or number == 249
            bound_log(log)
            assert log.stat().st_size <= 1000
    pieces = sorted(log.parent.iterdir(), reverse=True)
    assert [path.name for path in pieces] == ["policy.log.2", "policy.log.1", "policy.log"]
    assert [number for path in pieces for number in written(path)] == list(range(250))


def written(log: Path) -> list[int]:
    """The numbers in the log; of an emptied one, those in the piece before it."""
    lines = log.read_text().splitlines()
    return [int(line) for line in lines]


def test_a_full_disk_does_not_let_the_log_grow(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_bytes(b"x" * 1001)
    monkeypatch.setattr(log_files, "shutil", Full)
    bound_log(log)
    assert log.read_bytes() == b""


class Full:
    """A disk without a byte."""

    @staticmethod
    def copyfile(*_: Path) -> None:
        raise OSError(28, "No space left on device")
