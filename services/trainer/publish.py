"""Hands new weights to every policy server: write a checkpoint, then let each server load it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from research.clients import INITIAL_VERSION
from research.prompts import TRAINED_PROMPT
from research.schemas import WeightsRequest
from services.trainer.replicas import Replicas

KEPT_VERSIONS = 2  # the one served and the one before, to which a server goes back if loading fails


class Publisher:
    """Writes ordinary checkpoints named by version below `directory` and makes the policy servers load them.

    Each says which rules it was trained with (`prompt`), so that nobody asks it with others in silence.
    """

    def __init__(self, base: Path, directory: Path, replicas: Replicas, prompt: str) -> None:
        self._base = base
        self._prompt = prompt
        self._directory = directory
        self._replicas = replicas
        self.version = int(INITIAL_VERSION)

    def path_of(self, version: int) -> Path:
        return self._directory / f"version-{version:06d}"

    async def publish(self, state: dict[str, torch.Tensor], version: int) -> float:
        """Write and serve a version.

        Returns:
            Seconds that the slowest server was paused.

        Raises:
            ServiceError: no server took it; all go on serving the former version.
        """
        await asyncio.to_thread(write_checkpoint, state, self._base, self.path_of(version), self._prompt)
        seconds = await self._replicas.update(self._request(version))
        self.version = version
        await asyncio.to_thread(self._forget_all_but, range(version - KEPT_VERSIONS + 1, version + 1))
        return seconds

    async def settle(self) -> str | None:
        """Give servers that serve another version the published one (a server started anew serves its base).

        Returns:
            What is wrong, if no server can serve it; else None.
        """
        return await self._replicas.settle(self._request(self.version))

    def _request(self, version: int) -> WeightsRequest:
        return WeightsRequest(path=str(self.path_of(version).resolve()), version=str(version))

    def _forget_all_but(self, kept: range) -> None:
        for path in self._directory.glob("version-*"):
            number, _, unfinished = path.name.removeprefix("version-").partition(".")
            # What is still unfinished now was left by a run that was killed while it wrote; what has a higher number,
            # by steps that were taken back.
            if unfinished or int(number) not in kept:
                shutil.rmtree(path)


def write_checkpoint(state: dict[str, torch.Tensor], base: Path, target: Path, prompt: str) -> None:
    """Write an ordinary Hugging Face checkpoint: the tensors of `base` by name and dtype, with values from `state`.

    Everything else (configuration, tokenizer, chat template) is copied from `base`. Written beside, then renamed.
    """
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in base.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".txt", ".model"):
            shutil.copyfile(file, partial / file.name)
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            shard = {name: state[name].to(tensors.get_tensor(name).dtype).contiguous() for name in tensors.keys()}  # noqa: SIM118
        save_file(shard, partial / file.name, metadata={"format": "pt"})
    (partial / TRAINED_PROMPT).write_text(prompt + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
