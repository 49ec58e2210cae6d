"""LoRA adapters that are loaded while the server serves: each is one more model, and the agent can answer with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.lora.request import LoRARequest

from research.errors import ConfigurationError, ResearchError
from services.policy.adapter_files import MAX_LOADED, WEIGHTS_FILE, require_adapter
from services.policy.checkpoint_files import TensorSpec, confined
from services.policy.finite import require_finite

logger = init_logger("vllm.research.adapters")


class AdapterFailedError(ResearchError, RuntimeError):
    """An adapter could not be loaded; those that were loaded before serve on."""


class Adapters:
    """Those that are loaded, by name.

    Args:
        engine: vLLM's engine client.
        models: vLLM's `OpenAIServingModels`, by which its own routes find adapters.
        base: the tensors of the served model.
        weights_dir: where adapters are accepted from.
        max_rank: the largest rank; 0: none can be loaded.
    """

    def __init__(self, engine: Any, models: Any, base: dict[str, TensorSpec], weights_dir: Path, max_rank: int) -> None:
        self._engine = engine
        self._models = models
        self._base = base
        self._weights_dir = weights_dir
        self._max_rank = max_rank
        self._lock = asyncio.Lock()

    @property
    def loaded(self) -> dict[str, LoRARequest]:
        """The adapters that are served."""
        loaded: dict[str, LoRARequest] = self._models.lora_requests
        return loaded

    async def load(self, name: str, path: str) -> None:
        """Serve an adapter; one of the same name is replaced. Its files are to stay where they are.

        Raises:
            ConfigurationError, AssetError: it is refused before anything is touched.
            AdapterFailedError: vLLM could not load it.
        """
        if not self._max_rank:
            raise ConfigurationError("adapters: the server was started without room for any; set policy.lora_rank")
        directory = confined(path, self._weights_dir)
        require_adapter(directory, self._base, self._max_rank)
        await asyncio.to_thread(require_finite, directory / WEIGHTS_FILE)
        async with self._lock:
            if self._models.is_base_model(name):
                raise ConfigurationError(f"name: {name} is the name of the model itself")
            former = self.loaded.get(name)
            if former is None and len(self.loaded) >= MAX_LOADED:
                raise ConfigurationError(f"adapters: {MAX_LOADED} are loaded already; unload one first")
            number = former.lora_int_id if former else self._models.lora_id_counter.inc(1)
            try:
                await self._engine.add_lora(LoRARequest(name, number, str(directory), load_inplace=True))
            except Exception as error:
                raise AdapterFailedError(f"the adapter {name} could not be loaded ({error})") from error
            # As after new weights: who is being answered with it goes on with the new one alone, and no prompt meets
            # a prefix that former contents of the same path computed.
            await self._engine.reset_prefix_cache(reset_running_requests=True)
            self.loaded[name] = LoRARequest(name, number, str(directory))
        logger.info("Serving the adapter %s from %s", name, directory)

    async def unload(self, name: str) -> None:
        """Serve an adapter no longer. Raises ConfigurationError if none of this name is loaded."""
        async with self._lock:
            adapter = self.loaded.pop(name, None)
            if adapter is None:
                raise ConfigurationError(f"name: no adapter {name} is loaded")
            await self._engine.remove_lora(adapter.lora_int_id)

    def named(self, name: str) -> LoRARequest:
        """The adapter to answer with. Raises ConfigurationError if none of this name is loaded."""
        if name not in self.loaded:
            known = ", ".join(sorted(self.loaded)) or "none"
            raise ConfigurationError(f"adapter: no adapter {name} is loaded (loaded: {known})")
        return self.loaded[name]
