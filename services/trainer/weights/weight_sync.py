"""How a version gets from the learner to the policy servers and onto the disk: `trainer.weight_sync`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from research.clients import PolicyAdmin
from research.errors import ServiceError
from research.schemas import WeightsRequest, WeightsResponse

WriteTensors = Callable[[Path, Path], None]  # weights like those of a checkpoint (first) into a directory (second)
Answer = WeightsResponse | ServiceError
Given = TypeVar("Given")


class Learned(Protocol):
    """Whose weights are published: a `Team`."""

    def write_weights(self, base: Path, directory: Path) -> None:
        """Write the weights, with the names and dtypes of `base`, to a directory."""
        ...

    def gather_weights(self, base: Path) -> dict[str, Tensor]:
        """What `write_weights` would write, as copies in host memory."""
        ...


class WeightSync(Protocol):
    """Stage a version, deliver it to servers, then keep it; all of one version before the next."""

    async def stage(self, learned: Learned, base: Path, write: Callable[[WriteTensors], None], version: str) -> None:
        """Make a version ready for `deliver`; `write` makes its directory, with tensors that its argument writes.

        Raises what went wrong when the version before was written.
        """
        ...

    async def deliver(self, admins: Sequence[PolicyAdmin], request: WeightsRequest) -> list[Answer]:
        """Make servers serve the version that is staged or one that was kept; their answers or errors, in order."""
        ...

    async def keep(self, prune: Callable[[], None]) -> None:
        """What was staged is served: see that it is on the disk, then drop what is no longer needed there."""
        ...

    async def settled(self) -> None:
        """Return once everything that was kept is on the disk. Raises what went wrong."""
        ...

    async def close(self) -> None:
        """Leave nothing half-written under its final name; raises nothing."""
        ...


class DiskSync:
    """Servers load from a disk (or /dev/shm) that they share with the trainer: it is written first.

    `patience`: seconds after which a server is looked after that has not answered. It is given up if it shows no sign
    of life for as long again, and believed if it serves the version although its answer was lost.
    """

    def __init__(self, patience: float = 120.0) -> None:
        self._patience = patience

    async def stage(self, learned: Learned, base: Path, write: Callable[[WriteTensors], None], version: str) -> None:
        await asyncio.to_thread(write, learned.write_weights)

    async def deliver(self, admins: Sequence[PolicyAdmin], request: WeightsRequest) -> list[Answer]:
        return list(await asyncio.gather(*(or_error(self._loaded(admin, request)) for admin in admins)))

    async def _loaded(self, admin: PolicyAdmin, request: WeightsRequest) -> WeightsResponse:
        loading = asyncio.create_task(admin.update_weights(request))
        try:
            while True:
                await asyncio.wait({loading}, timeout=self._patience)
                if loading.done():
                    return loading.result()
                if await self._serves_already(admin, request):
                    return WeightsResponse(version=request.version, seconds={})
        finally:
            loading.cancel()

    async def _serves_already(self, admin: PolicyAdmin, request: WeightsRequest) -> bool:
        """Raises ServiceError if the server does not answer at all, or does not know of the order."""
        try:
            served = await admin.weights(self._patience)  # a server that loads is slow to answer
        except ServiceError as error:
            if error.status is None:
                raise
            return False  # it lives
        if served.fault is None and served.version == request.version and Path(served.source) == Path(request.path):
            return True
        if served.updating is False:
            raise ServiceError(
                f"the order to load version {request.version} was lost, or what became of it: version "
                f"{served.version} is served ({served.fault or 'without a fault'}), and nothing is being loaded"
            )
        return False

    async def keep(self, prune: Callable[[], None]) -> None:
        await asyncio.to_thread(prune)

    async def settled(self) -> None:
        """It always is."""

    async def close(self) -> None:
        """Nothing is under way."""


async def or_error(answer: Awaitable[Given]) -> Given | ServiceError:
    """The answer of a server, or why there is none."""
    try:
        return await answer
    except ServiceError as error:
        return error
