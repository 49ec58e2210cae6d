"""One transfer of weights from rank 0 to all other ranks at once, and the vote at its end.

Each tensor is sent once. Then the ranks add up which tensors arrived with numbers that are not finite: the sum is known
only once every rank has everything, so either all ranks may load the weights or none.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from research.errors import ResearchError
from services.transport import nccl
from services.transport.nccl import DTYPES, Group, Seat

# A rank that waits for longer than this without a tensor gives up; the whole transfer may take longer.
STALL_SECONDS = 60.0
# For leaving a group in which all is done: a rank that is lost even then is not waited for.
_LEAVE_SECONDS = 5.0
# Numbers that are checked at a time: the check needs a few bytes for each, and the KV cache leaves little memory.
_CHECKED_AT_ONCE = 2**26

Result = TypeVar("Result")


class TransferError(ResearchError, RuntimeError):
    """A rank was lost or the transfer was given up; nothing that has arrived may be used."""


@dataclass(frozen=True, slots=True)
class _Done(Generic[Result]):
    value: Result


class Transfer(Generic[Result]):
    """One rank's part in a transfer, in a thread of its own that can be given up: NCCL waits for a lost rank for ever.

    A thread that NCCL never lets go (it waits for a rank to join) stays behind, and ends with the process.
    """

    def __init__(self, seat: Seat, work: Callable[[Group, Callable[[], None]], Result]) -> None:
        """Begin: join the group, then do `work` with it and with a function to call after each tensor."""
        self._seat = seat
        self._work = work
        self._news: queue.SimpleQueue[_Done[Result] | TransferError | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._group: Group | None = None
        self._given_up = False
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)
        self._thread.start()

    def result(self) -> Result:
        """What `work` returned; waits for it, but for no tensor longer than `STALL_SECONDS`.

        Raises TransferError if a rank is lost, nothing moves, or another thread gives the transfer up.
        """
        while True:
            try:
                news = self._news.get(timeout=STALL_SECONDS)
            except queue.Empty:
                self.give_up(f"no tensor has moved for {STALL_SECONDS:g} s; a rank is lost or too slow")
                continue
            if isinstance(news, TransferError):
                raise news
            if news is not None:
                self._thread.join(_LEAVE_SECONDS)
                return news.value

    def give_up(self, why: str) -> None:
        """End the transfer for this rank, from any thread; `result` raises TransferError with `why`."""
        self._news.put(TransferError(why))
        with self._lock:
            self._given_up = True
            group, self._group = self._group, None
        if group is not None:
            group.abort()

    def _run(self) -> None:
        if self._seat.device.type != "cpu":
            torch.accelerator.set_device_index(self._seat.device)
        try:
            group = nccl.join_group(self._seat)
            with self._lock:
                late = self._given_up
                self._group = None if late else group
            if late:
                group.abort()
                return
            self._moved()
            value = self._work(group, self._moved)
        except Exception as error:
            self.give_up(str(error) or repr(error))
            return
        with self._lock:
            left, self._group = self._group, None
        if left is not None:
            self._news.put(_Done(value))
            left.leave()

    def _moved(self) -> None:
        if self._given_up:
            raise TransferError("the transfer was given up")
        self._news.put(None)


def send(seat: Seat, tensors: Iterable[Tensor]) -> Transfer[list[int]]:
    """Begin to send tensors as rank 0.

    Returns:
        The transfer; its result are the numbers of tensors that did not arrive finite. If there are any, no rank loads.
    """

    def work(group: Group, moved: Callable[[], None]) -> list[int]:
        count = 0
        for tensor in tensors:
            group.broadcast(tensor.to(seat.device).contiguous())
            moved()
            count += 1
        return _vote(group, torch.zeros(count, dtype=torch.int32, device=seat.device))

    return Transfer(seat, work)


def receive(seat: Seat, tensors: Sequence[tuple[str, str, Sequence[int]]]) -> dict[str, Tensor]:
    """Receive tensors as a rank after 0, and wait for all other ranks to have them.

    Args:
        seat: where this rank is.
        tensors: name, dtype (in safetensors' spelling) and shape of each, in the order in which rank 0 sends them.

    Returns:
        The tensors in host memory, by name.

    Raises:
        TransferError: a rank was lost.
        ValueError: tensors arrived, here or elsewhere, with numbers that are not finite; it names them.
    """

    def work(group: Group, moved: Callable[[], None]) -> tuple[dict[str, Tensor], list[int]]:
        received: dict[str, Tensor] = {}
        broken = torch.zeros(len(tensors), dtype=torch.int32, device=seat.device)
        for number, (name, dtype, shape) in enumerate(tensors):
            tensor = torch.empty(shape, dtype=DTYPES[dtype], device=seat.device)
            group.broadcast(tensor)
            broken[number] = _is_broken(tensor)
            received[name] = tensor.cpu()
            moved()
        return received, _vote(group, broken)

    received, broken = Transfer(seat, work).result()
    if broken:
        names = [tensors[number][0] for number in broken[:3]]
        raise ValueError(f"{', '.join(names)} arrived with numbers that are not finite")
    return received


def _is_broken(tensor: Tensor) -> Tensor:
    """Whether any number is not finite, as a scalar on the tensor's device: nothing waits for it."""
    pieces = torch.split(tensor.view(-1), _CHECKED_AT_ONCE)
    return torch.stack([~torch.isfinite(piece).all() for piece in pieces]).any()


def _vote(group: Group, broken: Tensor) -> list[int]:
    """The numbers of tensors that are broken on any rank; known once every rank has voted."""
    return [number for number, ranks in enumerate(group.sums(broken).tolist()) if ranks]
