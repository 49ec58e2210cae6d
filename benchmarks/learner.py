"""Tokens per second of one GRPO update on the CPU, by size of micro-batches and with or without `keep_freed_memory`.

Run: python -m benchmarks.learner (needs `make prepare`; about five minutes). Ratios are against the first row.
`--formats` measures bfloat16 and float32 in the preset's micro-batches instead, on this processor and on one without
AVX-512 (emulated, tests/emulated_avx2), with nothing else changed; bfloat16 without AVX-512 takes minutes.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time

from research.config import load_settings
from research.model_paths import local_checkpoint
from services.trainer.learner.batching import TrainingSequence
from tests.emulated_avx2 import ENVIRONMENT

SELF = [sys.executable, "-m", "benchmarks.learner"]
CASES = [(tokens, keep) for keep in ("no", "yes") for tokens in (4096, 2048, 1024, 512)]


def sequences(count: int) -> list[TrainingSequence]:
    """Made-up token ids in the lengths of the built-in default: the time does not depend on what they say."""
    rng = random.Random(0)
    made = []
    for _ in range(count):
        length = rng.randint(200, 300)
        positions = [p for p in range(75, length) if rng.random() < 0.45]
        ids = [rng.randrange(1000, 40000) for _ in range(length)]
        made.append(TrainingSequence(ids, positions, [-1.0] * len(positions), rng.choice([1.0, -1.0])))
    return made


def measure(micro_batch_tokens: int, keep: bool, dtype: str = "auto", count: int = 24) -> float:
    """Tokens per second of the second update in this process."""
    from services.trainer.learner.learner import Learner
    from services.trainer.learner.malloc import keep_freed_memory

    settings = load_settings(overrides=[f"optimizer.micro_batch_tokens={micro_batch_tokens}", f"model.dtype={dtype}"])
    learner = Learner(settings, local_checkpoint(settings.model.name, settings.paths.data))
    learner.set_torch_threads()
    if keep:
        keep_freed_memory()
    batch = sequences(count)
    learner.grpo_update(batch[: max(1, count // 6)])
    started = time.perf_counter()
    learner.grpo_update(batch)
    return sum(len(s.token_ids) for s in batch) / (time.perf_counter() - started)


def formats() -> None:
    """Median of three, each in a process of its own."""
    print("| instructions | number format | tokens/s |\n|---|---|---|")
    for name, environment in (("all of this CPU", {}), ("AVX2 (emulated)", ENVIRONMENT)):
        for dtype in ("bfloat16", "float32"):
            slow = dtype == "bfloat16" and bool(environment)
            command = [*SELF, "1024", "yes", dtype, "1" if slow else "24"]
            rates = [_rate(command, environment) for _ in range(1 if slow else 3)]
            print(f"| {name} | {dtype} | {statistics.median(rates):.0f} |", flush=True)


def _rate(command: list[str], environment: dict[str, str]) -> float:
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return float(done.stdout.split()[-1])


def main() -> None:
    """Each case in a process of its own, since the allocator's setting cannot be taken back."""
    if len(sys.argv) == 5:
        print(measure(int(sys.argv[1]), sys.argv[2] == "yes", sys.argv[3], int(sys.argv[4])))
        return
    if sys.argv[1:] == ["--formats"]:
        formats()
        return
    first = None
    print("| micro-batch tokens | freed memory kept | tokens/s | ratio |\n|---|---|---|---|")
    for tokens, keep in CASES:
        rate = _rate([*SELF, str(tokens), keep, "auto", "24"], {})
        first = first or rate
        print(f"| {tokens} | {keep} | {rate:.0f} | {rate / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
