"""Two processes of the learner against one: FSDP2 over gloo, as on a machine with two GPUs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.trainer.learner.learner import Learner
from services.trainer.learner.team import Team
from services.trainer.parallel.ranks import Ranks
from services.trainer.parallel.shards import SavedTensors
from tests.conftest import REPOSITORY
from tests.support import ranks_child
from tests.support.forked import Forked
from tests.support.tiny_model import tiny_settings, write_tiny_model

# Of what, and in which directory.
NAMES = {"model": "checkpoint", "reference": "reference", "optimizer": "checkpoint"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    write_tiny_model(directory / "tiny")
    return directory


@pytest.fixture(scope="module")
def together(free_port: Callable[[], int], service_environment: dict[str, str]) -> Callable[..., Any]:
    """A function that runs a scenario in two processes, with what torchrun would tell them; returns its result."""

    def run(scenario: str, work: Path, *overrides: str) -> Any:
        work.mkdir(parents=True, exist_ok=True)
        group = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        ranks = [
            Forked(
                ["-c", "from tests.support.ranks_child import main; main()", scenario, str(work), *overrides],
                work / "log",
                {**service_environment, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        try:
            assert [rank.wait(600) for rank in ranks] == [0, 0], (work / "log").read_text()
        finally:
            for rank in ranks:
                rank.kill()
        return json.loads((work / "result.json").read_text())

    return run


def alone(scenario: str, work: Path, *overrides: str) -> dict[str, Any]:
    """The same scenario in this process."""
    work.mkdir(parents=True, exist_ok=True)
    learner = Learner(tiny_settings(work, *ranks_child.SETTINGS, *overrides), work.parent / "tiny")
    return ranks_child.SCENARIOS[scenario](Team(learner, Ranks()), work)


def same_numbers(one: Any, other: Any, where: str = "", within: float = 1e-5) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same_numbers(one[key], other[key], f"{where}.{key}", within)
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            same_numbers(left, right, f"{where}[{index}]", within)
    elif one is None or other is None:
        assert one is other, where
    else:
        assert one == pytest.approx(other, rel=1e-4, abs=within), where


def saved(directory: Path, name: str) -> dict[str, torch.Tensor]:
    tensors = SavedTensors(directory, name)
    return {key: tensors.assembled(key) for key in tensors.names()}


@pytest.fixture(scope="module")
def results(root: Path, together: Callable[..., Any]) -> tuple[Any, Any]:
    return alone("update", root / "one"), together("update", root / "two")


def test_two_processes_compute_what_one_does(root: Path, results: tuple[Any, Any]) -> None:
    """Log-probabilities, losses, gradient norms and weights, over two supervised steps and five updates."""
    same_numbers(*results)
    one, two = (load_whole(root / name / "weights") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-2, atol=1e-5)  # bf16, as published
    for name, where in NAMES.items():
        mine, other = saved(root / "one" / where, name), saved(root / "two" / where, name)
        assert mine.keys() == other.keys()
        for key in mine:
            torch.testing.assert_close(mine[key], other[key], rtol=1e-3, atol=1e-6, msg=f"{name}: {key}")


def test_ratios_and_masks_of_whole_sequences_are_the_same_in_two_processes(
    root: Path, together: Callable[..., Any]
) -> None:
    """They take passes of their own, in which every rank must take part, also one that has nothing to do."""
    overrides = ["grpo.objective=gspo", "grpo.num_iterations=2", "grpo.mini_batches=2", "grpo.kl_coefficient=0.01"]
    overrides += ["grpo.importance_correction=geometric_mask", "grpo.importance_band=[0.8,1.25]"]
    one, two = (run("update", root / f"gspo-{name}", *overrides) for name, run in (("1", alone), ("2", together)))
    same_numbers(one["reports"], two["reports"])
    assert any(0 < report["masked_share"] < 1 for report in one["reports"])
    assert any(report["clipped_share"] > 0 for report in one["reports"])


LORA = ["lora.rank=3", "lora.alpha=6", "grpo.kl_coefficient=0", "grpo.entropy_coefficient=0"]


@pytest.mark.parametrize("more", [[], LORA], ids=["all weights", "lora"])
def test_in_bf16_two_processes_compute_what_one_does_but_for_rounding(
    root: Path, together: Callable[..., Any], more: list[str]
) -> None:
    """FSDP computes the residual stream in bf16, autocast in float32, so only the figures can be alike.

    With LoRA, frozen weights in bf16 and factors in float32 are gathered side by side.
    """
    work, half = f"half-{len(more)}", ["model.dtype=bfloat16", *more]
    one, two = (run("update", root / f"{work}-{name}", *half) for name, run in (("1", alone), ("2", together)))
    for mine, other in zip(one["reports"], two["reports"], strict=True):
        assert mine["tokens"] == other["tokens"]
        for name in ("loss", "policy_loss", "entropy", "mismatch_mean", "grad_norm"):
            assert mine[name] == pytest.approx(other[name], rel=0.05, abs=0.02), name


def test_lora_in_two_processes_is_lora_in_one(root: Path, together: Callable[..., Any]) -> None:
    """With three rows of a factor for two ranks; its checkpoint is read and published by either number of them."""
    one, two = (run("update", root / f"lora-{name}", *LORA) for name, run in (("1", alone), ("2", together)))
    same_numbers(one, two)
    for name in ("model", "optimizer"):
        mine, other = (saved(root / f"lora-{number}" / "checkpoint", name) for number in (1, 2))
        assert mine.keys() == other.keys()
        assert all("lora_" in key for key in mine)
        for key in mine:
            torch.testing.assert_close(mine[key], other[key], rtol=1e-3, atol=1e-6, msg=f"{name}: {key}")
    adapters = [load_file(root / f"lora-{number}" / "checkpoint" / "adapter_model.safetensors") for number in (1, 2)]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.allclose(adapters[0][key], adapters[1][key], rtol=1e-3, atol=1e-6) for key in adapters[0])
    for name, run in (("1", alone), ("2", together)):
        give(root / "lora-2", root / f"lora-again-{name}")
        run("again", root / f"lora-again-{name}", *LORA)
    for where in ("weights", "gathered.safetensors"):
        published = [root / f"lora-again-{name}" / where for name in ("1", "2")]
        mine, other = (load_whole(each) if each.is_dir() else load_file(each) for each in published)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) and mine[key].dtype == other[key].dtype for key in mine)
    assert any(not torch.equal(tensor, mine[key]) for key, tensor in load_whole(root / "tiny").items())


def test_a_run_with_lora_and_a_kl_term_is_the_same_in_two_processes(root: Path, together: Callable[..., Any]) -> None:
    """The reference is the model with its factors switched off, on each rank."""
    overrides = [*LORA, "lora.rank=1", "grpo.kl_coefficient=0.01", "sft.enabled=false"]  # a rank has no row of it
    one, two = (run("update", root / f"lora-kl-{name}", *overrides) for name, run in (("1", alone), ("2", together)))
    same_numbers(one, two)
    assert all(report["kl"] > 0 for report in one["reports"][1:])
    # There the first pass of the model in its factors' format is the one without them.
    halves = []
    for name, run in (("1", alone), ("2", together)):
        give(root / "lora-kl-2", root / f"lora-kl-half-{name}")
        halves.append(run("again", root / f"lora-kl-half-{name}", *overrides, "model.dtype=bfloat16")["report"])
    assert halves[0]["grad_norm"] == pytest.approx(halves[1]["grad_norm"], rel=0.05)
    assert all(half["kl"] > 0 for half in halves)


def load_whole(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def give(source: Path, work: Path, reference: str = "from-reference") -> None:
    """What `again` begins from."""
    shutil.copytree(source / "checkpoint", work / "from")
    if (source / "reference").exists():
        shutil.copytree(source / "reference", work / reference, dirs_exist_ok=True)


def test_a_checkpoint_goes_from_two_to_one_to_two_bit_for_bit(
    root: Path, results: tuple[Any, Any], together: Callable[..., Any]
) -> None:
    """The second time with the reference inside, as checkpoints had it until 2026-11."""
    give(root / "two", root / "to-one")
    first = alone("again", root / "to-one")
    give(root / "to-one", root / "to-two", "from")
    second = together("again", root / "to-two")
    for name, where in NAMES.items():
        original = saved(root / "two" / where, name)
        for step in ("to-one", "to-two"):
            found = saved(root / step / where, name)
            assert found.keys() == original.keys()
            assert all(torch.equal(found[key], original[key]) for key in original), (step, name)
    assert len(list((root / "to-two" / "checkpoint").glob("model-*.safetensors"))) == 2
    same_numbers(first, second)


def test_weights_are_published_byte_for_byte_as_one_process_would(
    root: Path, results: tuple[Any, Any], together: Callable[..., Any]
) -> None:
    for work, world in (("publish-one", 1), ("publish-two", 2)):
        give(root / "two", root / work)
        if world == 1:
            alone("again", root / work)
        else:
            together("again", root / work)
    one, two = load_whole(root / "publish-one" / "weights"), load_whole(root / "publish-two" / "weights")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)
    for gathered in (load_file(root / work / "gathered.safetensors") for work in ("publish-one", "publish-two")):
        assert gathered.keys() == one.keys()
        assert all(torch.equal(gathered[name], one[name]) and gathered[name].dtype == one[name].dtype for name in one)
    index = json.loads((root / "publish-two" / "weights" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == two.keys()
    assert len({*index["weight_map"].values()}) == 2


def test_a_whole_run_in_two_processes_is_that_of_one(root: Path, service_environment: dict[str, str]) -> None:
    """Started as users start it."""
    model = root / "run" / "tiny"
    write_tiny_model(model)
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for work, start in (("one", []), ("two", two)):
        ended = subprocess.run(
            [sys.executable, *start, "-m", "tests.support.ranks_child", "run", str(root / "run" / work)],
            cwd=REPOSITORY,
            env=service_environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stderr
    one, two = (
        [json.loads(line) for line in (root / "run" / name / "runs/demo/metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for entry in (*one, *two):
        del entry["seconds"]
    # What is published is rounded to bf16, now and then to the other side.
    same_numbers(one, two, within=1e-2)
