"""The last episodes of a step, which all others and the learner wait for: waited for, or cut."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from research.errors import ServiceError

logger = logging.getLogger(__name__)

_REPEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Stragglers:
    """Once no more than this share of the episodes is unfinished, they are cut; what they wrote is scored as it is.

    Attributes:
        share: of the episodes that were begun together.
        cut: makes the policy end every turn under way.
    """

    share: float
    cut: Callable[[], Awaitable[None]]

    async def cut_last(self, begun: int, unfinished: Callable[[], int], finished_one: asyncio.Event) -> None:
        """Wait until few of `begun` are unfinished, then cut those until none is; one may be searching meanwhile."""
        few = int(self.share * begun)
        while unfinished() > few:
            finished_one.clear()
            await finished_one.wait()
        while unfinished():
            try:
                await self.cut()
            except ServiceError as error:
                logger.info("stragglers could not be cut yet: %s", error)
            await asyncio.sleep(_REPEAT_SECONDS)
