"""Seconds of a training step by number format, on the processor that this process believes to have.

Prints a line of JSON for each format that is named, and compares each with float32.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from services.machine.number_formats import number_format
from services.trainer.learner.learner import Learner
from services.trainer.model.batching import TrainingSequence
from tests.support.tiny_model import tiny_settings

_IDS = list(range(100, 228))
SEQUENCES = [TrainingSequence(_IDS, list(range(64, 128)), [-1.0] * 64, [1.0] * 64)]


def seconds(model: Path, work: Path, dtype: str) -> float:
    """Of the faster of two steps."""
    learner = Learner(tiny_settings(work, f"model.dtype={dtype}", "grpo.kl_coefficient=0"), model)
    learner.set_torch_threads()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        learner.supervised_update(SEQUENCES, 1e-4, "sft")
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "model"
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=400,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=2,
                num_attention_heads=9,
                num_key_value_heads=3,
            )
        ).save_pretrained(model)
        reference = seconds(model, Path(work), "float32")
        for dtype in sys.argv[1:]:
            found, own = number_format(dtype, "cpu"), seconds(model, Path(work), dtype)
            figures = {"name": found.name, "warning": found.warning, "seconds": own, "float32_seconds": reference}
            print(json.dumps(figures))


if __name__ == "__main__":
    main()
