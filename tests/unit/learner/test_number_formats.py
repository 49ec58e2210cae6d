"""The number format follows the processor: by rule, and in a process on an emulated processor without AVX-512."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from services.machine.number_formats import ProductSpeeds, decided, number_format, obeyed
from tests.emulated_avx2 import ENVIRONMENT


@pytest.mark.parametrize(
    ("says_bf16", "half", "float32", "expected"),
    [
        (True, 140.0, 70.0, "bfloat16"),
        (True, 80.0, 70.0, "float32"),  # hardly faster: the wider one
        (True, 2.0, 70.0, "float32"),  # torch says so, and it is not so
        (False, 140.0, 70.0, "float32"),  # fast once, by luck
        (False, 1.0, 70.0, "float32"),
    ],
)
def test_bf16_is_taken_where_torch_and_the_clock_agree(
    says_bf16: bool, half: float, float32: float, expected: str
) -> None:
    found = decided(says_bf16, ProductSpeeds(half, float32), "AVX2")
    assert found.name == expected
    assert found.slowdown == pytest.approx(float32 / half)
    assert found.gflops == (half if expected == "bfloat16" else float32)
    assert "AVX2" in found.line


def test_a_wish_is_obeyed_and_warned_of_with_the_ratio() -> None:
    slow = obeyed("bfloat16", ProductSpeeds(1.25, 159.0), "AVX2")
    assert slow.name == "bfloat16"
    assert "127 x slower than float32" in slow.warning
    assert "model.dtype=auto" in slow.warning
    assert obeyed("bfloat16", ProductSpeeds(140.0, 70.0), "AVX512").warning == ""
    assert obeyed("float32", ProductSpeeds(1.25, 159.0), "AVX2").warning == ""


def test_threads_are_as_they_were() -> None:
    before = torch.get_num_threads()
    number_format("auto", "cpu")
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_without_avx512_a_training_step_in_the_default_is_no_slower_than_in_float32_by_far(
    steps: dict[str, dict[str, Any]],
) -> None:
    found = steps["auto"]
    assert found["name"] == "float32"
    assert found["seconds"] < 10 * found["float32_seconds"], found


@pytest.mark.slow
def test_the_emulated_processor_is_really_slow_in_bf16(steps: dict[str, dict[str, Any]]) -> None:
    """Otherwise the test above could not fail."""
    found = steps["bfloat16"]
    assert found["name"] == "bfloat16"
    assert found["warning"]
    assert found["seconds"] > 3 * found["float32_seconds"], found


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Any]]:
    """By format: a supervised step of the real learner on two layers of the built-in model's width, without AVX-512."""
    formats = ["auto", "bfloat16"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.learner_step", *formats],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-len(formats) :]
    return {dtype: json.loads(line) for dtype, line in zip(formats, lines, strict=True)}
