"""Tokens a second of one GRPO update on the CPU, by size of micro-batches and with or without `keep_freed_memory`.

Run: python benchmarks/learner.py (needs `make prepare`; about five minutes). Ratios are against the first row.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time

from research.assets import local_checkpoint
from research.config import load_settings
from services.trainer.sequences import TrainingSequence

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


def measure(micro_batch_tokens: int, keep: bool) -> float:
    """Tokens a second of the second update in this process."""
    from services.trainer.learner import Learner
    from services.trainer.memory import keep_freed_memory

    settings = load_settings(overrides=[f"optimizer.micro_batch_tokens={micro_batch_tokens}"])
    learner = Learner(settings, local_checkpoint(settings.model.name, settings.paths.data))
    learner.prepare_thread()
    if keep:
        keep_freed_memory()
    batch = sequences(24)
    learner.grpo_update(batch[:4])
    started = time.perf_counter()
    learner.grpo_update(batch)
    return sum(len(s.token_ids) for s in batch) / (time.perf_counter() - started)


def main() -> None:
    """Each case in a process of its own, since the allocator's setting cannot be taken back."""
    if len(sys.argv) == 3:
        print(measure(int(sys.argv[1]), sys.argv[2] == "yes"))
        return
    first = None
    print("| micro-batch tokens | freed memory kept | tokens/s | ratio |\n|---|---|---|---|")
    for tokens, keep in CASES:
        command = [sys.executable, __file__, str(tokens), keep]
        rate = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        first = first or rate
        print(f"| {tokens} | {keep} | {rate:.0f} | {rate / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
