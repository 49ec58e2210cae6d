"""Nobody goes before those who ask without a priority."""

from __future__ import annotations

from typing import Any

_LAST = 2**31 - 1  # the engine's messages hold 64 bits


def nobody_first(engine: Any) -> None:
    """Make vLLM's engine client take a priority below 0, which vLLM would serve first, for 0.

    Rollouts ask with 1, so that nobody waits for them. A client gives a priority in the body or in a header, and has
    the key that all clients have.
    """
    add_request = engine.add_request

    async def fair(*arguments: Any, priority: int = 0, **options: Any) -> Any:
        return await add_request(*arguments, priority=min(max(priority, 0), _LAST), **options)

    engine.add_request = fair
