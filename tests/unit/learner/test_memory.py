"""A trainer does not grow with its steps: what an update frees goes back to the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from services.trainer.learner import learner
from tests.support.tiny_model import random_sequences, tiny_settings, write_tiny_model

# Blocks of many sizes, of which every other one stays: holes that nothing else fits into.
HOLES = """
import psutil
from services.machine.heap import return_freed_memory
from services.trainer.model.memory import keep_freed_memory
keep_freed_memory()
memory = psutil.Process().memory_info
before = memory().rss
blocks = [bytearray(100_000 + 997 * number) for number in range(2000)]
kept = blocks[::2]
del blocks
full = memory().rss - before
return_freed_memory()
print(full, memory().rss - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators return memory by themselves")
def test_memory_between_what_stays_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    full, left = map(int, done.stdout.split())
    assert full > 1.9e9
    assert left < 0.6 * full


def test_each_update_returns_what_it_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[int] = []
    monkeypatch.setattr(learner, "return_freed_memory", lambda: returned.append(1))
    model = write_tiny_model(tmp_path / "model")
    own = learner.Learner(tiny_settings(tmp_path), model)
    own.end_sft()
    own.grpo_update(random_sequences(4, seed=0))
    assert len(returned) == 2
