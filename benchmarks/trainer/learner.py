"""An update of the learner: tokens per second and memory against TRL's step and against the bare products.

Run: python -m benchmarks.trainer.learner (needs `make prepare`; about half an hour on two cores).

The episodes are the 24 that `make demo` trained on in its fifth step, recorded in episodes.json.gz beside this file. No
layer is frozen, and each case runs in processes of its own. Speed is the median of three updates. Memory is the peak
above weights, gradients and Adam's two moments. The bound is the time that the matrix products alone take at the speed
of this machine: each linear layer forward and twice backward, for each token once (what several episodes begin with
counts once), the vocabulary projection for sampled tokens only, and attention by its number of operations.

`--formats` measures bfloat16 and float32 in the preset's micro-batches instead, on this processor and on one without
AVX-512 (emulated, tests/emulated_avx2), with nothing else changed; bfloat16 without AVX-512 takes minutes.
`--avx2` runs all cases on the emulated processor; `--only` some of them. `--profile` shows where an update goes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.trainer.peak import RETURNING, peak_above_states
from research.config import load_settings
from research.model_paths import local_checkpoint
from services.machine.number_formats import cpu_capability
from services.trainer.model.batching import TrainingSequence, collate, common_prefix, pack_micro_batches
from tests.emulated_avx2 import ENVIRONMENT

SELF = [sys.executable, "-m", "benchmarks.trainer.learner"]

_MINUTES = 120.0  # seconds


@dataclass(frozen=True)
class Case:
    """One way to make the update; `changes` are named in `_apply`."""

    name: str
    overrides: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


CASES = [
    Case("ours"),
    Case("TRL's step", changes=("trl",)),
    Case("TRL's step, freed memory kept", changes=("trl", "keep")),
    Case("without shared prefixes", changes=("unshared",)),
    Case("with full logits", changes=("full logits",)),
    Case("with the entropy of every token", changes=("all entropy",)),
    Case("layers that keep all for the backward pass", changes=("not lean",)),
    Case("AdamW not fused", changes=("slow adam",)),
    Case("freed memory returned", changes=("return",)),
    Case("micro-batches of 512", overrides=("optimizer.micro_batch_tokens=512",)),
    Case("micro-batches of 2048", overrides=("optimizer.micro_batch_tokens=2048",)),
    Case("gradient checkpointing", overrides=("optimizer.gradient_checkpointing=on",)),
]


def episodes() -> list[TrainingSequence]:
    """The recorded episodes."""
    lines = gzip.decompress((Path(__file__).parent / "episodes.json.gz").read_bytes())
    return [_sequence(**episode) for episode in json.loads(lines)]


def _sequence(advantage: float, **fields: Any) -> TrainingSequence:
    """The file is from when an episode had one advantage."""
    return TrainingSequence(**fields, advantages=[advantage] * len(fields["sampled_positions"]))


def total_tokens() -> int:
    return sum(len(episode.token_ids) for episode in episodes())


def updater(case: Case, dtype: str) -> tuple[Callable[[], Any], int]:
    """A function that makes one update, and the number of trained parameters."""
    if "trl" in case.changes:
        from benchmarks.trainer.trl_step import TrlStep

        step = TrlStep(dtype)
        return lambda: step.update(episodes()), sum(p.numel() for p in step.model.parameters())
    from services.trainer.learner import compute, learner
    from services.trainer.model import forward, head

    if "not lean" in case.changes:
        forward_module: Any = forward
        forward_module.make_lean = lambda model: None
    settings = load_settings(
        overrides=[f"model.dtype={dtype}", "optimizer.frozen_layers=0", *case.overrides, "optimizer.warmup_steps=0"]
    )
    own = learner.Learner(settings, local_checkpoint(settings.model.name, settings.paths.data))
    own.set_torch_threads()
    if "unshared" in case.changes:
        compute_module: Any = compute
        compute_module.pack_micro_batches = partial(pack_micro_batches, share_prefixes=False)
        compute_module.collate = partial(collate, share_prefixes=False)
    if "full logits" in case.changes:
        head._CPU_ELEMENTS = 2**40
    if "all entropy" in case.changes:
        head.ENTROPY_EVERY = 1
    if "slow adam" in case.changes:
        own._steps.optimizer = torch.optim.AdamW(own.model.parameters(), lr=4e-5, betas=(0.9, 0.95), weight_decay=0.0)
    return lambda: own.grpo_update(episodes()), sum(p.numel() for p in own.model.parameters() if p.requires_grad)


def speed(case: Case, dtype: str) -> dict[str, float]:
    """Seconds of an update: the median of three, after one that does not count; of one of minutes, the first."""
    from services.trainer.model.memory import keep_freed_memory

    update, _ = updater(case, dtype)
    if "keep" in case.changes or not {"trl", "return"} & {*case.changes}:
        keep_freed_memory()
    started = time.perf_counter()
    update()
    if (first := time.perf_counter() - started) > _MINUTES:
        return {"seconds": first}
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds)}


def memory(case: Case, dtype: str) -> dict[str, float]:
    """Peak bytes above weights, gradients and Adam."""
    return {"bytes": peak_above_states(*updater(case, dtype))}


def profile(dtype: str) -> None:
    """The default update by operation: their own seconds on the CPU, most first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from services.trainer.model.memory import keep_freed_memory

    update, _ = updater(CASES[0], dtype)
    keep_freed_memory()
    for _ in range(2):
        update()
    with profiler(activities=[ProfilerActivity.CPU]) as seen:
        update()
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


def bound(dtype: str) -> dict[str, float]:
    """Seconds of the products alone."""
    from transformers import AutoConfig

    settings = load_settings(overrides=[f"model.dtype={dtype}"])
    torch.set_num_threads(settings.trainer.threads)
    config = AutoConfig.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data))
    rows, kind = settings.optimizer.micro_batch_tokens, getattr(torch, dtype)
    hidden, ffn, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv = hidden // config.num_attention_heads * config.num_key_value_heads
    ordered = sorted(episode.token_ids for episode in episodes())
    shared = [0, *(common_prefix(left, right) for left, right in pairwise(ordered))]
    tokens = total_tokens() - sum(shared)
    sampled = sum(episode.sampled_tokens for episode in episodes())
    shapes = {(hidden, hidden): 2, (hidden, kv): 2, (hidden, ffn): 2, (ffn, hidden): 1}
    body = sum(count * _product_seconds(rows, *shape, kind) for shape, count in shapes.items()) / rows
    head = _product_seconds(rows // 4, hidden, config.vocab_size, kind) / (rows // 4)
    rate = 6 * hidden * ffn / (_product_seconds(rows, hidden, ffn, kind) / rows)
    # Two products forward and four backward, for each pair of a token that is new and one before it.
    pairs = sum((len(ids) ** 2 - known**2) / 2 for ids, known in zip(ordered, shared, strict=True))
    attention = 6 * 2 * hidden * pairs * layers / rate
    return {"seconds": layers * body * tokens + head * sampled + attention, "gflops": rate / 1e9}


def _product_seconds(rows: int, inputs: int, outputs: int, kind: torch.dtype) -> float:
    """Of one linear layer: forward, and the gradients of input and weight; best of five."""
    x, weight, dy = (torch.randn(*shape).to(kind) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        x @ weight.T
        dy @ weight
        dy.T @ x
        times.append(time.perf_counter() - started)
    return min(times)


def _ask(what: str, name: str, dtype: str, environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [*SELF, "--measure", what, name, dtype],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(dtype: str, environment: dict[str, str], only: list[str]) -> None:
    """The cases as a table; ratios are against TRL's step and against the bound."""
    limit = _ask("bound", "", dtype, environment)
    tokens, bytes_per_gb = total_tokens(), 1e9
    print(f"{cpu_capability()}{' (AVX2 emulated)' if environment else ''}, {dtype}, {tokens} tokens, no layer frozen; ")
    print(f"the products alone: {limit['seconds']:.2f} s ({limit['gflops']:.0f} GFLOP/s)\n")
    print("| update | tokens/s | x TRL | share of the bound | memory above the states, GB | x TRL |")
    print("|---|---|---|---|---|---|")
    measured = {}
    for case in CASES:
        if only and case.name not in ("ours", "TRL's step", *only):
            continue
        seconds = _ask("speed", case.name, dtype, environment)["seconds"]
        measured[case.name] = seconds, _ask("memory", case.name, dtype, environment | RETURNING)["bytes"]
        print(f"  {case.name}: {seconds:.2f} s", file=sys.stderr)
    trl_seconds, trl_bytes = measured["TRL's step"]
    for name, (seconds, peak) in measured.items():
        cells = [name, f"{tokens / seconds:.0f}", f"{trl_seconds / seconds:.2f}", f"{limit['seconds'] / seconds:.2f}"]
        print("| " + " | ".join([*cells, f"{peak / bytes_per_gb:.2f}", f"{peak / trl_bytes:.2f}"]) + " |")


def formats() -> None:
    """The default update by number format, on this processor and on an emulated one."""
    print("| instructions | number format | tokens/s |\n|---|---|---|")
    for name, environment in (("all of this CPU", {}), ("AVX2 (emulated)", ENVIRONMENT)):
        for dtype in ("bfloat16", "float32"):
            seconds = _ask("speed", "ours", dtype, environment)["seconds"]
            print(f"| {name} | {dtype} | {total_tokens() / seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--avx2", action="store_true", help="on an emulated processor without AVX-512")
    parser.add_argument("--only", nargs="*", default=[], help="of the other cases, these")
    parser.add_argument("--profile", action="store_true", help="show where an update of ours goes instead")
    parser.add_argument("--formats", action="store_true", help="compare number formats instead")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "CASE", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, name, dtype = arguments.measure
        case = next((case for case in CASES if case.name == name), CASES[0])
        measure = {"speed": speed, "memory": memory}
        print(json.dumps(bound(dtype) if what == "bound" else measure[what](case, dtype)))
    elif arguments.formats:
        formats()
    elif arguments.profile:
        profile(arguments.dtype)
    else:
        compare(arguments.dtype, ENVIRONMENT if arguments.avx2 else {}, arguments.only)


if __name__ == "__main__":
    main()
