"""Publishes new weights to every policy server, and keeps each version as a checkpoint."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from research.clients import INITIAL_VERSION
from research.prompts import TRAINED_PROMPT
from research.schemas import WeightsRequest
from research.weights.checksummed_dir import MANIFEST, atomic_checksummed_dir
from research.weights.run_weights import ORIGIN, Origin, version_path, write_origin
from services.trainer.weights.replicas import Replicas
from services.trainer.weights.weight_sync import Learned, WriteTensors

# Files that a run wrote into a base which is itself a published version; they do not apply to the next version.
_OF_A_RUN = frozenset({MANIFEST, ORIGIN})
KEPT_VERSIONS = 2  # the one served and the one before, to which a server falls back if loading fails


class Publisher:
    """Writes ordinary checkpoints named by version below `directory` and makes the policy servers load them.

    Each names the rules that it was trained with (`prompt`), so that no caller uses others unnoticed, and its run
    (`origin`), so that a restarted server can find it.
    """

    def __init__(
        self, base: Path, directory: Path, replicas: Replicas, prompt: str, origin: Origin | None = None
    ) -> None:
        self._base = base
        self._origin = origin
        self._prompt = prompt
        self._directory = directory
        self._replicas = replicas
        self.version = int(INITIAL_VERSION)
        # Episodes under way look at the servers while new weights are handed out; nobody may get the former ones then.
        self._delivering = asyncio.Lock()

    def path_of(self, version: int) -> Path:
        return version_path(self._directory, version)

    async def publish(self, learned: Learned, version: int) -> float:
        """Serve what the learner has as a version, and write it.

        Returns:
            Seconds that the slowest server was paused.

        Raises:
            ServiceError: no server took it; all still serve the former version.
            OSError: the version, or a former one that was written meanwhile, could not be written.
        """
        first = self._origin
        origin = replace(first, version=version, trained=first.trained or version > 0) if first else None
        write = partial(
            write_checkpoint, base=self._base, target=self.path_of(version), prompt=self._prompt, origin=origin
        )
        await self._replicas.sync.stage(learned, self._base, write, str(version))
        async with self._delivering:
            seconds = await self._replicas.update(self._request(version))
            self.version = version
        await self._replicas.sync.keep(partial(self._prune, range(version - KEPT_VERSIONS + 1, version + 1)))
        return seconds

    async def settled(self) -> None:
        """Return once every published version is on the disk. Raises what went wrong when it was written."""
        await self._replicas.sync.settled()

    async def close(self) -> None:
        """Leave nothing half-written under a version's name."""
        await self._replicas.sync.close()

    async def reconcile(self) -> str | None:
        """Send the published version to servers that serve another (a restarted server serves its base).

        Returns:
            What is wrong, if no server can serve it; else None.
        """
        async with self._delivering:
            return await self._replicas.reconcile(self._request(self.version))

    async def unready(self) -> str | None:
        """Why no policy server could take new weights; None if one is ready."""
        return await self._replicas.unready()

    def _request(self, version: int) -> WeightsRequest:
        return WeightsRequest(path=str(self.path_of(version).resolve()), version=str(version))

    def _prune(self, kept: range) -> None:
        for path in self._directory.glob("version-*"):
            number, _, unfinished = path.name.removeprefix("version-").partition(".")
            # A run that was killed while it wrote leaves an unfinished version; a rollback leaves higher numbers.
            # What has another name is not ours to delete.
            if number.isdecimal() and (unfinished or int(number) not in kept):
                shutil.rmtree(path)


def write_checkpoint(
    write_tensors: WriteTensors, base: Path, target: Path, prompt: str, origin: Origin | None = None
) -> None:
    """Write an ordinary Hugging Face checkpoint: the tensors of `base` by name and dtype, with values of the learner.

    Everything else (configuration, tokenizer, chat template) is copied from `base`. What `target` then
    holds is complete, on the disk, and has checksums (`atomic_checksummed_dir`).
    """
    with atomic_checksummed_dir(target, replace=True) as partial:
        for file in base.iterdir():
            if file.is_file() and file.suffix in (".json", ".jinja", ".txt", ".model") and file.name not in _OF_A_RUN:
                shutil.copyfile(file, partial / file.name)
        write_tensors(base, partial)
        (partial / TRAINED_PROMPT).write_text(prompt + "\n", encoding="utf-8")
        if origin is not None:
            write_origin(partial, origin)
