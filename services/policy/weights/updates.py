"""One weight update as a transaction: the server either serves the new version or continues with the old one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from vllm.logger import init_logger

from research.clients import INITIAL_VERSION
from research.errors import ConfigurationError, ResearchError
from services.policy.weights.checkpoint_checks import TensorSpec, require_same_tensors, resolve_inside, tensor_specs
from services.policy.weights.finite import require_finite
from services.policy.weights.sources import FromDisk, Received, Source
from services.policy.weights.worker_rpc import EngineHangsError, WorkerFailedError, call_workers, within
from services.transport.nccl import DTYPES

UPDATES = Counter("research_policy_weight_updates_total", "Updates of the weights by outcome.", ["outcome"])
PHASE_SECONDS = Histogram(
    "research_policy_weight_update_seconds",
    "Seconds of each phase of an update; requests are frozen during all of them.",
    ["phase"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
SERVED = Gauge("research_policy_weight_version", "1 for the version that is served.", ["version"])

# Shorter than the trainer waits for the response (`PolicyAdmin`). It leaves out who has not even given up by then.
RECEIVE_SECONDS = 240
# Together no longer than the trainer waits. A step of the engine may be long; nothing else delays a pause.
FREEZE_SECONDS, LOAD_SECONDS, RESUME_SECONDS = 60, 210, 30
READ_SECONDS = 240  # of the files, before anything is frozen
DISCARD_SECONDS = 10

Result = TypeVar("Result")

logger = init_logger("vllm.research.updates")


class UpdateFailedError(ResearchError, RuntimeError):
    """New weights could not be loaded; the message says what is served now."""


class UpdateTimedOutError(UpdateFailedError):
    """The engine, or the disk, did not answer in time."""


class WeightUpdates:
    """Owns the choice of the served weights. `engine` is vLLM's engine client."""

    def __init__(
        self,
        engine: Any,
        base: Path,
        weights_dir: Path,
        version: str = INITIAL_VERSION,
        *,
        keep_kv_cache: bool = False,
    ) -> None:
        """`base` is the checkpoint that the engine was started with, as `version`."""
        self._engine, self._keep_kv_cache = engine, keep_kv_cache
        self._weights_dir = weights_dir
        self.tensors = tensor_specs(base)
        self._lock = asyncio.Lock()
        self._connected = False
        self._paused_by_hand = False
        self._lost = False
        self._running: set[asyncio.Task[dict[str, float]]] = set()
        # A thread of its own: a disk that hangs takes none of those that requests need.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self.fault: str | None = None
        self.source: Source = FromDisk(base)
        self.identity = self.source.identity()
        self.version = version

    async def announce_initial_version(self) -> None:
        await self._engine.update_weight_version(self.version)
        self._tell_version()

    async def apply(self, path: str, version: str) -> dict[str, float]:
        """Load a checkpoint while requests are frozen, then resume them under the new weights.

        The work is shielded: it continues to its end even if the caller disconnects. Updates run in the order in
        which they arrive.

        Returns:
            Seconds of each phase.

        Raises:
            ConfigurationError, AssetError: the checkpoint is refused before anything is changed.
            UpdateFailedError: loading failed; the former weights have been reloaded, or the message says why not.
            UpdateTimedOutError: it hangs. If the engine does, `fault` says so until an update succeeds.
        """

        def checked() -> Path:
            checkpoint = resolve_inside(path, self._weights_dir)
            require_same_tensors(tensor_specs(checkpoint), self.tensors)
            require_finite(checkpoint)
            return checkpoint

        async def update() -> dict[str, float]:
            checkpoint = await self._read(version, checked)
            return await self._swap(FromDisk(checkpoint), version, {})

        return await self._exclusively(update)

    async def consider(self, tensors: dict[str, TensorSpec]) -> None:
        """Whether `receive` would begin to receive such tensors; raises what it would raise."""
        self._require_receivable(tensors)
        if self._lost:
            raise UpdateFailedError(str(self.fault))
        try:
            await self._engine.check_health()
        except Exception as error:
            raise UpdateFailedError(f"the engine takes no weights ({str(error) or repr(error)})") from error

    async def receive(
        self, group_id: str, first_rank: int, ranks: int, tensors: dict[str, TensorSpec], version: str
    ) -> dict[str, float]:
        """As `apply`, with weights that the trainer broadcasts by NCCL, in the order of `tensors`.

        Nothing is loaded before all workers of all servers in the group have received everything.

        Args:
            group_id: of the group of `ranks` ranks; this server's workers have those from `first_rank` on.
        """

        async def update() -> dict[str, float]:
            self._require_receivable(tensors)
            order = [(name, spec.dtype, list(spec.shape)) for name, spec in tensors.items()]
            seconds: dict[str, float] = {}
            await self._receive((group_id, first_rank, ranks, order), version, seconds)
            return await self._swap(Received(group_id), version, seconds)

        return await self._exclusively(update)

    def _require_receivable(self, tensors: dict[str, TensorSpec]) -> None:
        require_same_tensors(tensors, self.tensors)
        if strange := {spec.dtype for spec in tensors.values()} - DTYPES.keys():
            raise ConfigurationError(f"tensors: {', '.join(strange)} cannot be broadcast; set trainer.weight_sync=file")

    @property
    def busy(self) -> bool:
        """Whether an update is in progress."""
        return self._lock.locked()

    async def _exclusively(self, update: Callable[[], Awaitable[dict[str, float]]]) -> dict[str, float]:
        async def locked() -> dict[str, float]:
            async with self._lock:
                if self._lost:
                    raise UpdateFailedError(str(self.fault))
                try:
                    return await update()
                finally:
                    await self._discard_received()

        running = asyncio.create_task(locked())
        # The event loop itself holds tasks only weakly.
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.shield(running)

    async def _read(self, version: str, work: Callable[[], Result]) -> Result:
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._reader, work)
        except TimeoutError as error:
            UPDATES.labels("failed").inc()
            now = self.fault or f"version {self.version} is still served"
            raise UpdateTimedOutError(
                f"version {version} could not be read within {READ_SECONDS} s; does its disk answer? {now}"
            ) from error

    async def _receive(self, where_and_what: tuple[Any, ...], version: str, seconds: dict[str, float]) -> None:
        try:
            with _timed(seconds, "receive"):
                async with asyncio.timeout(RECEIVE_SECONDS):
                    await call_workers(self._engine, "research_receive_weights", *where_and_what)
        except Exception as error:
            UPDATES.labels("failed").inc()
            if isinstance(error, TimeoutError):
                # Workers give up a lost rank long before. These cannot: no request is answered.
                self._lost = True
                self.fault = (
                    f"version {version} was not received within {RECEIVE_SECONDS} s, and the workers do not "
                    "answer; restart this server"
                )
            now = self.fault or f"version {self.version} is still served"
            raise UpdateFailedError(f"version {version} could not be received ({error}); {now}") from error

    async def _discard_received(self) -> None:
        """Keep in the workers' memory only the served weights, which a failed update reloads."""
        if not self._lost:
            kept = [self.source.group_id] if isinstance(self.source, Received) else []
            with suppress(WorkerFailedError, EngineHangsError):
                async with within(DISCARD_SECONDS):
                    await call_workers(self._engine, "research_keep_received", kept)

    async def _swap(self, source: Source, version: str, seconds: dict[str, float]) -> dict[str, float]:
        identity = await self._read(version, source.identity)
        await self._freeze(version, seconds)
        failure: UpdateFailedError | None = None
        try:
            await self._load(source, version, seconds)
        except EngineHangsError as error:
            failure = self._hang("loaded", version, error)
        except Exception as error:
            failure = await self._go_back(source, version, error)
        else:
            self.source, self.version, self.fault = source, version, None
            self.identity = identity
            self._tell_version()
        UPDATES.labels("failed" if failure else "served").inc()
        await self._resume(seconds)
        if failure:
            raise failure
        logger.info("Serving weight version %s (%.2f s)", version, sum(seconds.values()))
        return seconds

    async def _freeze(self, version: str, seconds: dict[str, float]) -> None:
        try:
            async with within(FREEZE_SECONDS):
                if self.fault is None:
                    self._paused_by_hand = await self._engine.is_paused()
                if not self._connected:
                    await call_workers(self._engine, "init_weight_transfer_engine", {})
                    self._connected = True
                with _timed(seconds, "pause"):
                    await self._engine.pause_generation(mode="keep", clear_cache=False)
        except EngineHangsError as error:
            UPDATES.labels("failed").inc()
            raise self._hang("begun", version, error) from error
        except Exception as error:
            UPDATES.labels("failed").inc()
            await self._resume({})
            now = self.fault or f"version {self.version} is still served"
            raise UpdateFailedError(
                f"version {version} could not be loaded, because requests could not be frozen ({error}); {now}"
            ) from error

    async def _resume(self, seconds: dict[str, float]) -> None:
        """Resume requests, unless the weights are invalid or the server was paused by hand."""
        if self.fault is not None or self._paused_by_hand:
            return
        try:
            async with within(RESUME_SECONDS):
                with _timed(seconds, "resume"):
                    await self._engine.resume_generation()
        except Exception as error:
            self.fault = f"requests could not be resumed ({error}); none is answered until an update succeeds"
            raise UpdateFailedError(self.fault) from error

    def _hang(self, what: str, version: str, error: EngineHangsError) -> UpdateTimedOutError:
        """The error to raise. No call undoes one that has not returned, and what it may still do is not known."""
        self.fault = (
            f"version {version} could not be {what} ({error}); no request is answered until an update succeeds or this "
            "server is restarted"
        )
        logger.error("%s", self.fault)
        return UpdateTimedOutError(self.fault)

    async def _go_back(self, source: Source, version: str, error: Exception) -> UpdateFailedError:
        """Reload the former weights; returns the error to raise, which says what is served now."""
        logger.error("Loading %s failed; reloading version %s", source, self.version, exc_info=error)
        try:
            await self._load(self.source, self.version, {})
        except Exception as fault:
            logger.exception("Reloading version %s failed", self.version)
            self.fault = (
                f"version {version} could not be loaded ({error}), nor version {self.version} reloaded ({fault}); "
                "no request is answered until an update succeeds"
            )
            return UpdateFailedError(self.fault)
        self.fault = None
        return UpdateFailedError(
            f"version {version} could not be loaded ({error}); version {self.version} is still served"
        )

    def _tell_version(self) -> None:
        SERVED.clear()
        SERVED.labels(self.version).set(1)

    async def _load(self, source: Source, version: str, seconds: dict[str, float]) -> None:
        async with within(LOAD_SECONDS):
            with _timed(seconds, "start"):
                # A load that failed may have left vLLM's update session open.
                await call_workers(self._engine, "research_abandon_update")
                await call_workers(self._engine, "start_weight_update")
            with _timed(seconds, "update"):
                await call_workers(self._engine, "update_weights", source.update_info())
            with _timed(seconds, "finish"):
                await call_workers(self._engine, "finish_weight_update")
                await self._engine.update_weight_version(version)
            if self._keep_kv_cache:
                return  # no later prompt finds a stale prefix: `prefix_salt.py`
            # Frozen requests hold keys and values of the old weights. These are computed again, so that each token
            # after the update is sampled from the new weights alone, and no later prompt hits a stale prefix.
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
