"""Without a terminal long work says a line every ten seconds, and no more."""

from __future__ import annotations

import subprocess
import sys

from services.process.progress import Lines

CODE = """
from services.process.progress import progress
with progress("encoding", "passages", total=100_000) as advance:
    for _ in range(100_000):
        advance(1)
"""


def test_a_line_every_ten_seconds() -> None:
    now = 0.0
    said: list[str] = []
    lines = Lines("encoding", "passages", total=10_000, done=1_000, say=said.append, clock=lambda: now)
    for second in range(1, 31):
        now = float(second)
        lines.advance(100)
    assert said == [
        "encoding: 2,000 of 10,000 passages, about 80 s left",
        "encoding: 3,000 of 10,000 passages, about 70 s left",
        "encoding: 4,000 of 10,000 passages, about 60 s left",
    ]


def test_of_an_unknown_total_only_the_count_is_said() -> None:
    now = 0.0
    said: list[str] = []
    lines = Lines("copying", "passages", say=said.append, clock=lambda: now)
    now = 12.0
    lines.advance(1_500)
    assert said == ["copying: 1,500 passages"]


def test_short_work_writes_nothing_into_a_log() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
