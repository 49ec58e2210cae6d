"""Two processes of the learner against one, on one machine: what an update and a publish cost, and what bounds them.

Run: python -m benchmarks.trainer.ranks (needs `make prepare`; about four minutes on two cores).

Weak scaling: the built-in model, one thread per process, float32, no layer frozen, no checkpointing; one rank makes an
update of `--sequences` sequences of 256 tokens (half of them sampled, no prefix shared), two ranks one of twice as
many.
The bound of two ranks is the time of two processes that make the update of one each, side by side, without a word to
each other (what the cores and the memory give), plus the time of the collectives alone: every gather of parameters by
FSDP's own calls, every sum of gradients over as many numbers. Medians of three updates, after one that does not count.

Publishing: the same weights from one rank and from two, seconds by part on rank 0, and the bound: a plain copy of the
written files, synced to the disk. Medians of three; what is published must be equal byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from research.config import load_settings
from research.model_paths import local_checkpoint
from research.weights import checksummed_dir
from services.trainer.learner.learner import Learner
from services.trainer.learner.team import Team, follow
from services.trainer.model.batching import TrainingSequence
from services.trainer.parallel import shards
from services.trainer.parallel.ranks import Ranks
from services.trainer.weights.publisher import write_checkpoint
from services.transport.safetensors_files import tensors_of

SELF = ["-m", "benchmarks.trainer.ranks"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ROUNDS = 3
SETTINGS = [
    "model.dtype=float32",
    "trainer.threads=1",
    "grpo.kl_coefficient=0",
    "optimizer.frozen_layers=0",
    "optimizer.gradient_checkpointing=off",
    "optimizer.micro_batch_tokens=512",
    "optimizer.warmup_steps=0",
]
# Of a publish: what is timed in which module.
PARTS = {
    "gather": (shards, "whole"),
    "write": (shards, "save_file"),
    "checksum": (checksummed_dir, "_identity"),
    "sync": (checksummed_dir, "_to_disk"),
}


def sequences(count: int) -> list[TrainingSequence]:
    rng = random.Random(1)
    return [
        TrainingSequence(
            token_ids=[rng.randrange(1000, 20_000) for _ in range(256)],
            sampled_positions=list(range(128, 256)),
            sampler_logprobs=[-8.0] * 128,
            advantages=[1.0 if number % 2 else -1.0] * 128,
        )
        for number in range(count)
    ]


def measure(per_rank: int) -> None:
    """What each process does; rank 0 prints its seconds as JSON."""
    ranks = Ranks.join("cpu")
    settings = load_settings(overrides=SETTINGS)
    base = local_checkpoint(settings.model.name, settings.paths.data)
    learner = Learner(settings, base, ranks)
    learner.set_torch_threads()
    found: dict[str, Any] = {}
    if ranks.leads:
        team = Team(learner, ranks)
        found["publish"], found["digest"] = publish(team, base)
        found["update"] = update(team, learner, sequences(per_rank * ranks.world))
        team.close()
    else:
        follow(learner, ranks)
    if not ranks.is_alone:
        micro_batches = per_rank * 256 // settings.optimizer.micro_batch_tokens
        found["collectives"] = collectives(learner, ranks, micro_batches)
    ranks.leave()
    if ranks.leads:
        print(json.dumps(found))


def update(team: Team, learner: Learner, batch: list[TrainingSequence]) -> dict[str, float]:
    """Seconds of an update, and of the optimizer in it."""
    totals, steps, began = [], [], 0.0

    def before(*_: object) -> None:
        nonlocal began
        began = time.perf_counter()

    learner.optimizer.register_step_pre_hook(before)
    learner.optimizer.register_step_post_hook(lambda *_: steps.append(time.perf_counter() - began))
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        assert team.grpo_update(batch) is not None
        totals.append(time.perf_counter() - started)
    return {"total": statistics.median(totals[1:]), "optimizer": statistics.median(steps[1:])}


def collectives(learner: Learner, ranks: Ranks, micro_batches: int) -> float:
    """Seconds of the collectives of an update without any computation."""
    units = [module for module in learner.model.modules() if isinstance(module, FSDPModule)]
    own = {id(unit): list(_own_parameters(unit, units)) for unit in units}
    seconds = []
    for _ in range(ROUNDS):
        ranks.any(False)  # begin together
        started = time.perf_counter()
        for _ in range(micro_batches):
            for unit in [*units, *units[1:]]:  # forward, and backward, for which the root stays gathered
                unit.unshard()
                unit.reshard()
            for unit in units:
                count = sum(parameter.numel() for parameter in own[id(unit)])
                count += -count % ranks.world
                dist.reduce_scatter_tensor(torch.empty(count // ranks.world), torch.zeros(count))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _own_parameters(unit: Any, units: list[Any]) -> Iterator[torch.nn.Parameter]:
    """Parameters of a unit that are in none of the units inside it."""
    inside = {id(p) for other in units if other is not unit for p in other.parameters() if _contains(unit, other)}
    yield from (parameter for parameter in unit.parameters() if id(parameter) not in inside)


def _contains(unit: Any, other: Any) -> bool:
    return any(module is other for module in unit.modules())


def publish(team: Team, base: Path) -> tuple[dict[str, float], str]:
    """Median seconds by part, with those of a plain copy of the files; and a digest of what was published."""
    rounds: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=load_settings().paths.runs.parent) as directory:
            target = Path(directory) / "version"
            with timed() as seconds:
                started = time.perf_counter()
                write_checkpoint(team.write_weights, base, target, "")
                total = time.perf_counter() - started
            for part in PARTS:
                rounds[part].append(seconds[part])
            rounds["cast and the rest"].append(total - sum(seconds.values()))
            rounds["total"].append(total)
            rounds["plain copy"].append(copy_seconds(target, Path(directory) / "copy"))
            digest = hashlib.sha256()
            for name, tensor in sorted(tensors_of(target), key=lambda item: item[0]):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return {part: statistics.median(found) for part, found in rounds.items()}, digest.hexdigest()


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """The seconds in the functions of `PARTS` while the block runs."""
    seconds: dict[str, float] = defaultdict(float)
    originals = {part: getattr(module, name) for part, (module, name) in PARTS.items()}

    def timing(part: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return originals[part](*arguments, **named)
            finally:
                seconds[part] += time.perf_counter() - started

        return call

    for part, (module, name) in PARTS.items():
        setattr(module, name, timing(part))
    yield seconds
    for part, (module, name) in PARTS.items():
        setattr(module, name, originals[part])


def copy_seconds(source: Path, target: Path) -> float:
    """Of a plain copy of the weights, synced to the disk."""
    target.mkdir()
    started = time.perf_counter()
    for file in source.glob("*.safetensors"):
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as copied:
            os.fsync(copied.fileno())
    return time.perf_counter() - started


def asked(per_rank: int, how: list[str], at_once: int = 1) -> list[dict[str, Any]]:
    """What so many processes of the same kind report that run at the same time."""
    command = [sys.executable, *how, *SELF, "--measure", str(per_rank)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(at_once)]
    said = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    return [json.loads(text.splitlines()[-1]) for text in said]


def compare(per_rank: int) -> None:
    """Both tables."""
    [one] = asked(per_rank, [])
    beside = asked(per_rank, [], at_once=2)
    [two] = asked(per_rank, TWO)
    side_by_side = statistics.mean(each["update"]["total"] for each in beside)
    print(f"weak scaling: {per_rank} sequences of 256 tokens per rank; seconds per update\n")
    print("| | update | of it the optimizer | tokens/s |\n|---|---|---|---|")
    for name, found, world in (("one rank", one, 1), ("two ranks", two, 2)):
        total, optimizer = found["update"]["total"], found["update"]["optimizer"]
        print(f"| {name} | {total:.2f} | {optimizer:.2f} | {world * per_rank * 256 / total:.0f} |")
    print(f"| two single ones side by side | {side_by_side:.2f} | | {2 * per_rank * 256 / side_by_side:.0f} |")
    bound = side_by_side + two["collectives"]
    print(
        f"\nthe collectives of two ranks alone: {two['collectives']:.2f} s; with side by side {bound:.2f} s, which is"
    )
    print(f"{bound / two['update']['total']:.2f} of what two ranks take\n")
    print(f"publishing, seconds on rank 0; byte-equal: {one['digest'] == two['digest']}\n")
    print("| part | one rank | two ranks |\n|---|---|---|")
    for part in two["publish"]:
        print(f"| {part} | {one['publish'][part]:.2f} | {two['publish'][part]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=4, help="per rank; an even number")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
    else:
        compare(arguments.sequences)


if __name__ == "__main__":
    main()
