"""How many requests may be sent, and what they may cost: counted on the disk before each is sent."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from research.settings.retriever import WebConfig
from services.retriever.web.lines import SealedLines
from services.retriever.web.refusals import budget_spent, disk_full

# What sums of prices may be off by.
_ROUNDING = 1e-9


class Budget:
    """The requests sent to one engine, whichever process sent them, and the limits of `web`.

    A request counts when it is about to be sent, so one that fails counts, too, and none is ever forgotten.

    Raises:
        AssetError: the file cannot be opened.
        ConfigurationError: another process writes it.
    """

    def __init__(self, path: Path, config: WebConfig) -> None:
        self._config = config
        self._lines = SealedLines(path, writable=True)
        self.requests, self.spent = 0, 0.0
        for _, entry in self._lines.entries():
            self.requests += 1
            self.spent += entry["price"]
        # A line that is spoilt was a request, too, probably of today's price.
        self.requests += self._lines.spoilt
        self.spent += self._lines.spoilt * config.price

    @property
    def path(self) -> Path:
        return self._lines.path

    @property
    def exhausted(self) -> str | None:
        """Why no further request may be sent, with the setting to raise; None if one may."""
        return self._why_not(self._config.price)

    def _why_not(self, price: float) -> str | None:
        config, after = self._config, self.spent + price
        if self.requests >= config.max_requests:
            return f"{self.requests} requests were sent and web.max_requests = {config.max_requests}; raise it"
        if config.max_spend is not None and after > config.max_spend + _ROUNDING:
            told = f"{self.spent:.4g} of web.max_spend = {config.max_spend:g} is spent"
            return f"{told} and a request costs {price:g}; raise web.max_spend"
        return None

    async def charge(self, price: float | None = None) -> None:
        """Count one request, on the disk before this returns.

        Args:
            price: default: `web.price`, which is that of the engine.

        Raises:
            HttpError: 402 if it may not be sent; 507 if it cannot be counted.
        """
        if price is None:
            price = self._config.price
        if (why := self._why_not(price)) is not None:
            raise budget_spent(why)
        self.requests += 1
        self.spent += price
        entry = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "price": price}
        try:
            # Whoever is canceled in the meantime has still been counted.
            await asyncio.shield(asyncio.to_thread(self._lines.add, entry))
        except OSError as error:
            self.requests -= 1
            self.spent -= price
            raise disk_full(self.path, error) from error

    def close(self) -> None:
        self._lines.close()
