"""A transfer in which a rank does not come, comes late or sends what is no number; both ends are in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from services.transport import broadcast, nccl
from services.transport.broadcast import TransferError, receive, send
from services.transport.nccl import Seat
from tests.support.gloo_group import join_gloo, new_gloo_id

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "join_group", join_gloo)


def wire(tensors: dict[str, Tensor]) -> list[tuple[str, str, list[int]]]:
    names = {dtype: name for name, dtype in nccl.DTYPES.items()}
    return [(name, names[tensor.dtype], list(tensor.shape)) for name, tensor in tensors.items()]


def test_every_dtype_and_shape_arrives_as_it_was_sent() -> None:
    tensors = {
        f"{name}-{'x'.join(map(str, shape))}": torch.randn(shape).to(dtype)
        for name, dtype in nccl.DTYPES.items()
        for shape in ((3, 5), (7,), (), (0, 2))
    }
    group_id = new_gloo_id()
    with ThreadPoolExecutor() as pool:
        receiving = [pool.submit(receive, Seat(group_id, rank, 3, CPU), wire(tensors)) for rank in (1, 2)]
        assert send(Seat(group_id, 0, 3, CPU), tensors.values()).result() == []
        for received in (each.result() for each in receiving):
            assert all(received[name].equal(tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_named_at_both_ends(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_CHECKED_AT_ONCE", 4)
    tensors = {"good": torch.ones(9, dtype=torch.bfloat16), "bad": torch.ones(9, dtype=torch.bfloat16)}
    tensors["bad"][8] = number
    group_id = new_gloo_id()
    with ThreadPoolExecutor() as pool:
        receiving = pool.submit(receive, Seat(group_id, 1, 2, CPU), wire(tensors))
        assert send(Seat(group_id, 0, 2, CPU), tensors.values()).result() == [1]
        with pytest.raises(ValueError, match=r"^bad arrived with numbers that are not finite"):
            receiving.result()


def test_a_rank_that_does_not_come_is_not_waited_for_and_finds_nobody_later(monkeypatch: pytest.MonkeyPatch) -> None:
    group_id = new_gloo_id()
    with monkeypatch.context() as hasty:
        hasty.setattr(broadcast, "STALL_SECONDS", 0.3)
        with pytest.raises(TransferError, match=r"no tensor has moved for 0\.3 s"):
            send(Seat(group_id, 0, 2, CPU), [torch.ones(3)]).result()
    with pytest.raises(TransferError, match="Connection"):
        receive(Seat(group_id, 1, 2, CPU), wire({"one": torch.ones(3)}))


def test_who_gives_up_tells_the_others_and_no_tensor_is_used() -> None:
    group_id, begun, go_on = new_gloo_id(), threading.Event(), threading.Event()

    def tensors() -> Iterator[Tensor]:
        yield torch.ones(3)
        begun.set()
        go_on.wait()
        yield torch.ones(3)

    with ThreadPoolExecutor() as pool:
        receiving = pool.submit(receive, Seat(group_id, 1, 2, CPU), wire({"one": torch.ones(3), "two": torch.ones(3)}))
        sending = send(Seat(group_id, 0, 2, CPU), tensors())
        begun.wait()
        sending.give_up("a server is lost")
        with pytest.raises(TransferError, match="a server is lost"):
            sending.result()
        with pytest.raises(TransferError):
            receiving.result()
        go_on.set()
