"""LoRA adapters, loaded while the server serves: each is one more model, and the agent can answer with it.

vLLM reads an adapter again whenever it has dropped it (after new full weights, or for a request that outlives its
adapter), and crashes if it cannot. So it reads our own copies, which were checked and stay. All requests for a name use
the same link to the copy, and the same adapter number.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from vllm.logger import init_logger
from vllm.lora.request import LoRARequest

from research.errors import AssetError, ConfigurationError, ResearchError
from services.policy.adapters.checks import CONFIG_FILE, MAX_LOADED, WEIGHTS_FILE, require_adapter
from services.policy.openai.format import AGENT
from services.policy.weights.checkpoint_checks import TensorSpec, resolve_inside
from services.policy.weights.finite import require_finite
from services.policy.weights.worker_rpc import EngineHangsError, WorkerFailedError, call_workers, within

T = TypeVar("T")

logger = init_logger("vllm.research.adapters")

# An adapter has some hundred MB. Who waits for the lock waits for all of this, for each order before.
READ_SECONDS, ADD_SECONDS, DISCARD_SECONDS = 60, 60, 10


class AdapterFailedError(ResearchError, RuntimeError):
    """An adapter could not be loaded; those that were loaded before are still served."""


class Adapters:
    """The loaded adapters, by name.

    Args:
        engine: vLLM's engine client.
        models: vLLM's `OpenAIServingModels`, where its own routes find adapters.
        base: the tensors of the served model.
        weights_dir: where adapters are accepted from.
        max_rank: the largest rank; 0: no adapter can be loaded.
    """

    def __init__(self, engine: Any, models: Any, base: dict[str, TensorSpec], weights_dir: Path, max_rank: int) -> None:
        self._engine = engine
        self._models = models
        self._base = base
        self._weights_dir = weights_dir
        self._max_rank = max_rank
        self._lock = asyncio.Lock()
        self._reader = ThreadPoolExecutor(1, "adapters")  # one that hangs keeps those after it waiting, not all threads
        self._copies = tempfile.TemporaryDirectory(prefix="research-adapters-")
        self._copied = 0
        self._numbers: dict[str, int] = {}
        self.sources: dict[str, Path] = {}

    @property
    def _served(self) -> dict[str, LoRARequest]:
        served: dict[str, LoRARequest] = self._models.lora_requests
        return served

    async def load(self, name: str, path: str) -> None:
        """Serve an adapter; one of the same name is replaced.

        Raises:
            ConfigurationError, AssetError: the adapter is refused before anything is changed.
            AdapterFailedError: it could not be read in time, or vLLM could not load it; the former one of that name is
                still served.
        """
        if not self._max_rank:
            raise ConfigurationError("adapters: LoRA is disabled; restart the server with policy.max_lora_rank set")
        if name == AGENT or self._models.is_base_model(name):
            raise ConfigurationError(f"name: {name} is already the name of a model; choose another")
        source = await self._in_time(resolve_inside, path, self._weights_dir)
        async with self._lock:
            if name not in self._served and len(self._served) >= MAX_LOADED:
                raise ConfigurationError(f"adapters: {MAX_LOADED} are loaded already; unload one first")
            copy = await self._in_time(self._checked_copy, source)
            try:
                await self._serve(name, copy)
                self.sources[name] = source
            finally:
                await asyncio.to_thread(self._tidy)
        logger.info("Serving the adapter %s from %s", name, source)

    async def unload(self, name: str) -> None:
        """Stop serving an adapter; requests in flight keep it to their end.

        Raises ConfigurationError if none of this name is loaded.
        """
        async with self._lock:
            if self._served.pop(name, None) is None:
                raise ConfigurationError(f"name: no adapter {name} is loaded")
            del self.sources[name]

    def named(self, name: str) -> LoRARequest:
        """The adapter to answer with. Raises ConfigurationError if none of this name is loaded."""
        if name not in self._served:
            known = ", ".join(sorted(self._served)) or "none"
            raise ConfigurationError(f"adapter: no adapter {name} is loaded (loaded: {known})")
        return self._served[name]

    async def _serve(self, name: str, copy: Path) -> None:
        link = Path(self._copies.name) / name
        former = link.readlink() if link.is_symlink() else None
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        _point(link, copy)
        try:
            async with within(ADD_SECONDS):
                await call_workers(self._engine, "research_add_adapter", name, number, str(link))
                # As after new weights: requests in flight continue with the new adapter alone, and no prompt hits a
                # prefix that the former one computed.
                await self._engine.reset_prefix_cache(reset_running_requests=True)
        except Exception as error:
            if former is not None:
                _point(link, former)
            # Drop whatever was loaded of it; vLLM reads the former one again with the next request.
            with suppress(WorkerFailedError, EngineHangsError):
                async with within(DISCARD_SECONDS):
                    await call_workers(self._engine, "remove_lora", number)
            raise AdapterFailedError(f"the adapter {name} could not be loaded ({error})") from error
        self._served[name] = LoRARequest(name, number, str(link))

    async def _in_time(self, read: Callable[..., T], *arguments: Any) -> T:
        """Read files in a thread. Raises AdapterFailedError if that takes too long, as where a disk does not answer."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._reader, read, *arguments)
        except TimeoutError as error:
            told = f"the adapter could not be read within {READ_SECONDS} s; does its disk answer?"
            raise AdapterFailedError(told) from error

    def _checked_copy(self, source: Path) -> Path:
        self._copied += 1
        copy = Path(self._copies.name) / f".{self._copied}"
        copy.mkdir()
        try:
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                if (source / file).is_file():
                    shutil.copyfile(source / file, copy / file)
            require_adapter(copy, self._base, self._max_rank)
            require_finite(copy / WEIGHTS_FILE)
        except OSError as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise AssetError(f"{source} cannot be read: {error}") from error
        except AssetError as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise AssetError(str(error).replace(str(copy), str(source))) from error
        return copy

    def _tidy(self) -> None:
        """Remove the copies that no link points to."""
        root = Path(self._copies.name)
        used = {link.readlink().name for link in root.iterdir() if link.is_symlink()}
        for copy in root.iterdir():
            if not copy.is_symlink() and copy.name not in used:
                shutil.rmtree(copy, ignore_errors=True)  # one that a hung disk keeps open is for the next time


def _point(link: Path, target: Path) -> None:
    """Make `link` point to `target`, atomically."""
    fresh = link.with_name(f"{link.name}~")
    fresh.symlink_to(target)
    os.replace(fresh, link)
