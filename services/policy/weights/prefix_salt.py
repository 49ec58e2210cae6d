"""Cached prefixes of former weights that no request finds, for servers that do not empty the cache at an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def salt_by_version(engine: Any, version: Callable[[], str]) -> None:
    """Make vLLM's engine client salt each prompt that has no salt of its own with the weight version served then."""
    add_request = engine.add_request

    async def salted(request_id: str, prompt: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(prompt, dict) and not prompt.get("cache_salt"):
            prompt = {**prompt, "cache_salt": f"weights {version()}"}
        return await add_request(request_id, prompt, *arguments, **options)

    engine.add_request = salted
