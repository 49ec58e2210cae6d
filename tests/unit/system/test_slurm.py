"""deploy/slurm/train.sbatch, run here with Slurm's variables set by hand; `srun` writes down what it is told."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import ROOT

SCRIPT = ROOT / "deploy" / "slurm" / "train.sbatch"


def run(
    tmp_path: Path, nodes: list[str], gpus: int, *arguments: str, services: int = 0, **variables: Any
) -> tuple[int, list[list[str]], str]:
    """Exit code, the commands that were started (the trainer's last), and what was said."""
    programs = tmp_path / "bin"
    programs.mkdir()
    log = tmp_path / "srun.log"
    made = {
        "scontrol": f"printf '%s\\n' {' '.join(nodes)}",
        # A service runs until the script ends it; the trainer ends once all of them have been started.
        "srun": f"""line=$(printf '%q ' "$@"); printf '%s\\n' "$line" >> {log}
case "$*" in
*torchrun*) for _ in {{1..2000}}; do [[ $(wc -l < {log}) -gt {services} ]] && break; sleep 0.05; done ;;
*) exec sleep 60 ;;
esac""",
    }
    for name, body in made.items():
        program = programs / name
        program.write_text(f"#!/usr/bin/env bash\n{body}\n")
        program.chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RESEARCH_ADMIN_TOKEN": "secret",
        "SLURM_JOB_NODELIST": "nodes",
        "SLURM_GPUS_ON_NODE": str(gpus),
        "SLURM_JOB_ID": "7",
        **variables,
    }
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    lines = log.read_text().splitlines() if log.exists() else []
    commands = [shlex.split(line) for line in lines]
    return done.returncode, sorted(commands, key=lambda command: "torchrun" in command), done.stderr


def test_two_nodes_are_one_that_trains_and_one_that_samples(tmp_path: Path) -> None:
    code, commands, said = run(tmp_path, ["a", "b"], 8, "qwen2.5-7b-musique", "grpo.steps=3", services=9)
    assert code == 0, said
    policies = [command for command in commands if "policy" in command]
    assert len(policies) == 8
    assert all("--nodelist=b" in command for command in policies)
    assert {word for command in policies for word in command if word.startswith("CUDA")} == {
        f"CUDA_VISIBLE_DEVICES={card}" for card in range(8)
    }
    trainer = commands[-1]
    assert {"--nodelist=a", "--nnodes=1", "--nproc-per-node=8", "grpo.steps=3", "qwen2.5-7b-musique"} <= set(trainer)
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in trainer
    (urls,) = [word for word in trainer if word.startswith("endpoints.policy_urls=")]
    assert urls == "endpoints.policy_urls=[" + ",".join(f'"http://b:{8100 + card}"' for card in range(8)) + "]"
    assert sum("retriever" in command for command in commands) == 1


def test_a_single_node_is_divided(tmp_path: Path) -> None:
    code, commands, said = run(tmp_path, ["a"], 8, "qwen2.5-3b-musique", services=3, SERVER_GPUS="2")
    assert code == 0, said
    policies = [command for command in commands if "policy" in command]
    devices = {word for command in policies for word in command if word.startswith("CUDA")}
    assert devices == {"CUDA_VISIBLE_DEVICES=4,5", "CUDA_VISIBLE_DEVICES=6,7"}
    assert "--nproc-per-node=4" in commands[-1]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ((), {}, "usage"),
        (("preset",), {"TRAINER_GPUS": "8"}, "no card is left"),
        (("preset",), {"RESEARCH_ADMIN_TOKEN": ""}, "set it to a secret"),
    ],
)
def test_a_mistake_is_said(tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, Any], message: str) -> None:
    code, commands, said = run(tmp_path, ["a"], 8, *arguments, **variables)
    assert code != 0
    assert message in said
    assert not any("torchrun" in command for command in commands)


def test_shellcheck_finds_nothing() -> None:
    program = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([program, str(SCRIPT), str(ROOT / ".ci" / "run"), str(ROOT / ".ci" / "wheel")], check=False)
    assert done.returncode == 0
