"""One weight update as a transaction: the server either serves the new version or goes on with the old one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.logger import init_logger

from research.clients import INITIAL_VERSION
from research.errors import ResearchError
from services.policy.checkpoint_files import TensorSpec, confined, require_same_tensors, tensor_specs
from services.policy.finite import require_finite
from services.policy.weight_sources import FromDisk, Received, Source

UPDATES = Counter("research_weight_updates_total", "Updates of the weights by outcome.", ["outcome"])
PHASE_SECONDS = Histogram(
    "research_weight_update_seconds",
    "Seconds of each phase of an update; requests are frozen during all of them.",
    ["phase"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
SERVED = Gauge("research_weight_version", "1 for the version that is served.", ["version"])

logger = init_logger("vllm.research.updates")


class UpdateFailedError(ResearchError, RuntimeError):
    """New weights could not be loaded; the message says what is served now."""


class WeightUpdates:
    """Owns which weights are served. `engine` is vLLM's engine client."""

    def __init__(self, engine: Any, base: Path, weights_dir: Path) -> None:
        self._engine = engine
        self._weights_dir = weights_dir
        self.tensors = tensor_specs(base)
        self._lock = asyncio.Lock()
        self._connected = False
        self._running: set[asyncio.Task[dict[str, float]]] = set()
        self.fault: str | None = None
        self.source: Source = FromDisk(base)
        self.version = INITIAL_VERSION

    async def announce_initial_version(self) -> None:
        await self._engine.update_weight_version(self.version)
        self._tell_version()

    async def apply(self, path: str, version: str) -> dict[str, float]:
        """Load a checkpoint while requests are frozen, then let them go on under the new weights.

        The work is shielded: a caller that hangs up does not leave it half done. Updates are made in the order in
        which they come.

        Returns:
            Seconds of each phase.

        Raises:
            ConfigurationError, AssetError: the checkpoint is refused before anything is touched.
            UpdateFailedError: loading failed; the former weights have been loaded again.
        """

        async def update() -> dict[str, float]:
            checkpoint = confined(path, self._weights_dir)
            require_same_tensors(await asyncio.to_thread(tensor_specs, checkpoint), self.tensors)
            await asyncio.to_thread(require_finite, checkpoint)
            return await self._swap(FromDisk(checkpoint), version, {})

        return await self._in_turn(update())

    async def receive(self, group_id: str, tensors: dict[str, TensorSpec], version: str) -> dict[str, float]:
        """As `apply`, with weights that the trainer broadcasts by NCCL, in the order of `tensors`."""

        async def update() -> dict[str, float]:
            require_same_tensors(tensors, self.tensors)
            seconds: dict[str, float] = {}
            order = [(name, spec.dtype, list(spec.shape)) for name, spec in tensors.items()]
            try:
                with _timed(seconds, "receive"):
                    await self._engine.collective_rpc("research_receive_weights", args=(group_id, order))
            except Exception as error:
                UPDATES.labels("failed").inc()
                now = self.fault or f"version {self.version} is served on"
                raise UpdateFailedError(f"version {version} could not be received ({error}); {now}") from error
            try:
                return await self._swap(Received(group_id), version, seconds)
            finally:
                served = [self.source.group_id] if isinstance(self.source, Received) else []
                await self._engine.collective_rpc("research_keep_received", args=(served,))

        return await self._in_turn(update())

    async def _in_turn(self, update: Coroutine[Any, Any, dict[str, float]]) -> dict[str, float]:
        async def locked() -> dict[str, float]:
            async with self._lock:
                return await update

        running = asyncio.create_task(locked())
        # The loop itself holds tasks only weakly.
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.shield(running)

    async def _swap(self, source: Source, version: str, seconds: dict[str, float]) -> dict[str, float]:
        # Who paused the server by hand resumes it by hand.
        was_paused = self.fault is None and await self._engine.is_paused()
        await self._freeze(version, seconds, was_paused)
        failure: UpdateFailedError | None = None
        try:
            await self._load(source, version, seconds)
        except Exception as error:
            failure = await self._go_back(source, version, error)
        else:
            self.source, self.version, self.fault = source, version, None
            self._tell_version()
        # With weights that are neither the old nor the new ones nobody is answered: requests stay frozen until an
        # update succeeds.
        if self.fault is None and not was_paused:
            with _timed(seconds, "resume"):
                await self._engine.resume_generation()
        UPDATES.labels("failed" if failure else "served").inc()
        if failure:
            raise failure
        logger.info("Serving weight version %s (%.2f s)", version, sum(seconds.values()))
        return seconds

    async def _freeze(self, version: str, seconds: dict[str, float], was_paused: bool) -> None:
        try:
            if not self._connected:
                await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
                self._connected = True
            with _timed(seconds, "pause"):
                await self._engine.pause_generation(mode="keep", clear_cache=False)
        except Exception as error:
            UPDATES.labels("failed").inc()
            if self.fault is None and not was_paused:
                with suppress(Exception):
                    await self._engine.resume_generation()
            now = self.fault or f"version {self.version} is served on"
            raise UpdateFailedError(
                f"version {version} could not be loaded, because requests could not be frozen ({error}); {now}"
            ) from error

    async def _go_back(self, source: Source, version: str, error: Exception) -> UpdateFailedError:
        """Load the former weights; the error to raise says what is served now."""
        logger.error("Loading %s failed; going back to version %s", source, self.version, exc_info=error)
        try:
            await self._load(self.source, self.version, {})
        except Exception as fault:
            logger.exception("Going back to version %s failed", self.version)
            self.fault = (
                f"version {version} could not be loaded ({error}), nor version {self.version} again ({fault}); "
                "no request is answered until an update succeeds"
            )
            return UpdateFailedError(self.fault)
        self.fault = None
        return UpdateFailedError(
            f"version {version} could not be loaded ({error}); version {self.version} is served on"
        )

    def _tell_version(self) -> None:
        SERVED.clear()
        SERVED.labels(self.version).set(1)

    async def _load(self, source: Source, version: str, seconds: dict[str, float]) -> None:
        with _timed(seconds, "start"):
            # A load that failed may have left vLLM's update session open.
            await self._engine.collective_rpc("research_abandon_update")
            await self._engine.start_weight_update()
        with _timed(seconds, "update"):
            await self._engine.update_weights(WeightTransferUpdateRequest(update_info=source.update_info()))
        with _timed(seconds, "finish"):
            await self._engine.finish_weight_update(version)
        # Frozen requests hold keys and values of the old weights: they are computed anew, so that each token after
        # the update is drawn from the new weights alone, and no later prompt meets a stale prefix.
        with _timed(seconds, "reset_cache"):
            await self._engine.reset_prefix_cache(reset_running_requests=True)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        passed = time.perf_counter() - started
        seconds[phase] = round(passed, 4)
        PHASE_SECONDS.labels(phase).observe(passed)
