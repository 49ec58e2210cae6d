"""The processes that train together, as torchrun started them, and the few things that they say to each other.

Rank 0 leads: it keeps the loop, HTTP and the journal. Nothing here is pickled: what travels is JSON and tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from research.errors import ConfigurationError, ResearchError, TrainingError
from services.trainer.parallel.heart import Heart, is_store_shared

# Followers wait for orders through rollouts, evaluations and outages. A rank that dies is noticed at once, by its
# closed connection, and one that hangs by its `Heart`; these times are for what neither of them sees.
_ORDERS, _COLLECTIVES = timedelta(days=7), timedelta(minutes=20)
_CONFIRMED = timedelta(seconds=5)

# With this set to 1, torchrun makes a new store for each of its attempts.
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@dataclass(frozen=True, slots=True)
class Ranks:
    """Who we are among the processes of a run; without torchrun, the only one.

    Attributes:
        rank: 0 leads.
        world: number of processes.
        mesh: over which parameters are sharded; None if alone.
        orders: a gloo group for orders, sums and texts; None if alone.
        heart: shows and watches signs of life; None if alone.
    """

    rank: int = 0
    world: int = 1
    mesh: DeviceMesh | None = None
    orders: Any = None
    heart: Heart | None = None

    @classmethod
    def join(cls, device: str, hosts_replicate: bool = False) -> Ranks:
        """Join the others, by the variables that torchrun sets; returns once all have.

        Args:
            device: `cpu` or `cuda`; there, this process takes the GPU of its local rank.
            hosts_replicate: shard within a host and replicate between hosts (HSDP), so that weights are gathered over
                the fast links only.

        Raises ConfigurationError if there are fewer GPUs than processes, or if torchrun starts the ranks again in the
        store of the former ones.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if device == "cuda":
            local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= there:
                raise ConfigurationError(f"trainer.processes: each takes a GPU, and there are {there} on this host")
            torch.cuda.set_device(local)
        if is_store_shared() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            # The ranks would look for each other at the addresses of the former ones (pytorch/pytorch#135712).
            raise ConfigurationError(
                f"{OWN_STORE} is not set; set it to 1 for torchrun, or it cannot start the ranks of a run again"
            )
        store, rank, world = next(rendezvous("env://", timeout=_COLLECTIVES))
        heart = Heart(store, rank, world)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            timeout=_COLLECTIVES,
            store=PrefixStore("group", store),
            rank=rank,
            world_size=world,
        )
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        if hosts_replicate and local < world:
            mesh = init_device_mesh(device, (world // local, local), mesh_dim_names=("replicate", "shard"))
        else:
            mesh = init_device_mesh(device, (world,), mesh_dim_names=("shard",))
        orders = dist.new_group(backend="gloo", timeout=_ORDERS)
        heart.start()
        return cls(rank, world, mesh, orders, heart)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world == 1

    def leave(self) -> None:
        """Leave the group; a process that ends without it makes the others wait."""
        if self.heart is not None:
            self.heart.stop()
            dist.destroy_process_group()

    @contextmanager
    def naming_the_lost(self, task: str) -> Iterator[None]:
        """Turn what torch raises when a process of the group is gone into a TrainingError that names it.

        An error while all are alive is this rank's own, and stays what it is.
        """
        try:
            yield
        except RuntimeError as error:
            if self.heart is None or isinstance(error, ResearchError) or not (lost := self.heart.lost()):
                raise
            raise TrainingError(
                f"a process of this run was lost in {task!r}: {lost} ({error}). Start the run again: it continues from "
                "the last checkpoint, on as many processes as there are then"
            ) from error

    def tell(self, text: bytes | None) -> bytes:
        """Rank 0's text, on every rank; the others pass None."""
        if self.is_alone:
            assert text is not None
            return text
        length = torch.tensor([len(text or b"")])
        dist.broadcast(length, 0, group=self.orders)
        body = torch.empty(int(length), dtype=torch.uint8)
        if text:
            body = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        if int(length):
            dist.broadcast(body, 0, group=self.orders)
        return body.numpy().tobytes()

    def confirm_end(self) -> None:
        """Rank 0 returns once every other has read its last order, or after some seconds; the others do not wait.

        Who leaves takes with it what another is still reading. Raises RuntimeError if one is gone or takes too long.
        """
        if not self.leads:
            dist.send(torch.zeros(1), 0, group=self.orders)
            return
        awaited = [dist.irecv(torch.zeros(1), src=rank, group=self.orders) for rank in range(1, self.world)]
        for each in awaited:
            if each is not None:
                each.wait(_CONFIRMED)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def maximum(self, value: float) -> float:
        return self._reduced([value], dist.ReduceOp.MAX)[0]

    def any(self, value: bool) -> bool:
        """Whether it holds on any rank."""
        return self.maximum(float(value)) > 0

    def gather(self, values: Tensor) -> list[Tensor]:
        """The float32 vector of every rank, of whatever lengths, on the CPU of every rank."""
        values = values.detach().float().cpu()
        if self.is_alone:
            return [values]
        lengths = torch.zeros(self.world, dtype=torch.long)
        lengths[self.rank] = len(values)
        dist.all_reduce(lengths, group=self.orders)
        padded = torch.zeros(int(lengths.max()))
        padded[: len(values)] = values
        found = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(found, padded, group=self.orders)
        return [each[:length] for each, length in zip(found, lengths.tolist(), strict=True)]

    def together(self, work: Callable[[], None]) -> None:
        """Do work that may fail on one rank alone (a full disk), and return once every rank has done it.

        Raises the error of this rank; TrainingError if only another one failed, so that none waits for it for ever.
        """
        fault: Exception | None = None
        try:
            work()
        except Exception as error:
            fault = error
        if self.any(fault is not None):
            raise fault or TrainingError("another process of this run failed; see its log")

    def _reduced(self, values: Sequence[float], how: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        if not self.is_alone:
            dist.all_reduce(tensor, how, group=self.orders)
        found: list[float] = tensor.tolist()
        return found
