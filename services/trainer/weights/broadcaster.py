"""Broadcasts weights to several policy servers at once: who takes part, and what is done when one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from research.clients import PolicyAdmin
from research.errors import ServiceError
from research.schemas import BroadcastOffer, BroadcastRequest, TensorOnWire
from services.trainer.weights.weight_sync import Answer, or_error
from services.transport import broadcast, nccl
from services.transport.broadcast import send
from services.transport.nccl import Seat

# How long a server that fails may be ahead of what this rank knows: the failure may be the outcome of the vote.
_AHEAD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class OnWire:
    """Tensors by name, in the order in which they are sent; `read` gives them anew for each try."""

    tensors: dict[str, TensorOnWire]
    read: Callable[[], Iterable[Tensor]]


@dataclass(frozen=True, slots=True)
class _Member:
    """A server that would take part, and its number of workers."""

    admin: PolicyAdmin
    workers: int


class Broadcaster:
    """Makes a group of the trainer and the workers of all servers that are willing, for each try anew.

    A group is not kept: who is lost between two versions would break it for all.
    """

    def __init__(self, device: torch.device, log: Callable[[str], None]) -> None:
        self._device = device
        self._log = log
        self._sending = asyncio.Lock()  # NCCL's groups must not compete for the GPU

    async def deliver(self, admins: Sequence[PolicyAdmin], wire: OnWire, version: str) -> list[Answer]:
        """Make servers serve a version; their answers or errors, in order.

        If a server is lost on the way, none loads the version. It is sent again to those that are left, or, if all
        seem well, to each by itself.
        """
        answers: dict[PolicyAdmin, Answer] = {}
        async with self._sending:
            members = await self._willing(admins, wire, answers)
            while members:
                fault = await self._broadcast(members, wire, version, answers)
                if fault is None:
                    break
                left = await self._willing([member.admin for member in members], wire, answers)
                if len(left) < len(members):
                    self._log(f"{fault}; it is sent again to the {len(left)} policy servers that are left")
                    members = left
                    continue
                if len(members) > 1:
                    self._log(f"{fault}; all seem well, and it is sent to each by itself")
                    for member in members:
                        await self._broadcast([member], wire, version, answers)
                break
        return [answers[admin] for admin in admins]

    async def _willing(
        self, admins: Sequence[PolicyAdmin], wire: OnWire, answers: dict[PolicyAdmin, Answer]
    ) -> list[_Member]:
        """Ask servers before any joins a group, in which the others would wait for it; `answers` gets refusals."""
        offer = BroadcastOffer(tensors=wire.tensors)
        found = await asyncio.gather(*(or_error(admin.offer(offer)) for admin in admins))
        members: list[_Member] = []
        for admin, status in zip(admins, found, strict=True):
            if isinstance(status, ServiceError):
                answers[admin] = status
            else:
                members.append(_Member(admin, status.workers))
        return members

    async def _broadcast(
        self, members: Sequence[_Member], wire: OnWire, version: str, answers: dict[PolicyAdmin, Answer]
    ) -> str | None:
        """One try; `answers` gets what each server answers. Returns why the weights did not reach all, or None."""
        ranks = 1 + sum(member.workers for member in members)
        group_id = await asyncio.to_thread(nccl.new_group_id)
        transfer = send(Seat(group_id, 0, ranks, self._device), wire.read())
        sent = asyncio.create_task(asyncio.to_thread(transfer.result))
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks if we are canceled

        async def ask(member: _Member, first_rank: int) -> Answer:
            request = BroadcastRequest(
                tensors=wire.tensors, group_id=group_id, first_rank=first_rank, ranks=ranks, version=version
            )
            answer = await or_error(member.admin.receive(request))
            if isinstance(answer, ServiceError):
                await asyncio.wait([sent], timeout=_AHEAD_SECONDS)
                transfer.give_up(str(answer))
            return answer

        first_ranks = accumulate((member.workers for member in members), initial=1)
        asked = [asyncio.create_task(ask(member, first)) for member, first in zip(members, first_ranks, strict=False)]
        fault = None
        try:
            await asyncio.wait([sent])
            if error := sent.exception():
                fault = f"version {version} did not reach all policy servers ({error})"
                # By then every worker that can has given up, too.
                await asyncio.wait(asked, timeout=broadcast.STALL_SECONDS + _AHEAD_SECONDS)
            else:
                await asyncio.wait(asked)
            for member, task in zip(members, asked, strict=True):
                answer = task.result() if task.done() else ServiceError(f"{member.admin.url} does not answer")
                if fault and isinstance(answer, ServiceError):
                    # Without the server's status: it refuses nothing, so the run may wait and publish again.
                    answer = ServiceError(f"{fault}: {answer}")
                answers[member.admin] = answer
        finally:
            transfer.give_up("the trainer does not wait any longer")
            for task in asked:
                task.cancel()
        return fault
