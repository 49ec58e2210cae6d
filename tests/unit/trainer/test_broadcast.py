"""Weights that are broadcast to several servers at once, over real groups; one is killed, hangs or refuses."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from research.errors import ServiceError
from research.schemas import TensorOnWire, WeightsResponse
from services.trainer.weights.broadcaster import Broadcaster, OnWire
from services.trainer.weights.weight_sync import Answer
from services.transport import broadcast, nccl
from tests.support.gloo_group import join_gloo, new_gloo_id
from tests.support.receiving_servers import Servers, receiving_servers, state

pytestmark = pytest.mark.slow


class Trainer:
    """Delivers to all servers."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.said: list[str] = []
        self.groups: list[str] = []

    def new_id(self) -> str:
        self.groups.append(new_gloo_id())
        return self.groups[-1]

    def deliver(
        self, tensors: dict[str, Tensor], version: str, read: Callable[[], Iterable[Tensor]] | None = None
    ) -> list[Answer]:
        specs = {name: TensorOnWire(dtype="F32", shape=list(tensor.shape)) for name, tensor in tensors.items()}
        wire, broadcaster = OnWire(specs, read or tensors.values), Broadcaster(torch.device("cpu"), self.said.append)
        answers: list[Answer] = self.servers.with_admins(lambda admins: broadcaster.deliver(admins, wire, version))
        return answers


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    with receiving_servers(tmp_path) as servers:
        yield servers


@pytest.fixture
def trainer(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer(servers)
    monkeypatch.setattr(nccl, "join_group", join_gloo)
    monkeypatch.setattr(nccl, "new_group_id", trainer.new_id)
    return trainer


def taken(answers: list[Answer]) -> list[bool]:
    return [isinstance(answer, WeightsResponse) for answer in answers]


def test_all_workers_of_all_servers_receive_it_in_one_group(servers: Servers, trainer: Trainer) -> None:
    servers.start(1, 2, 1)
    before = servers.served(0)[0]
    assert taken(trainer.deliver(state(1), "1")) == [True] * 3
    assert len(trainer.groups) == 1
    one, two, three = servers.served(0, 1, 2)
    assert one == three
    assert two == ("1", one[1] * 2)
    assert one[1] != before[1]
    assert taken(trainer.deliver(state(2), "2")) == [True] * 3
    assert trainer.said == []


def test_one_that_is_killed_on_the_way_is_left_out_and_the_others_get_it_again(
    servers: Servers, trainer: Trainer
) -> None:
    servers.start(1, 1, 1)
    trainer.deliver(state(1), "1")
    tensors, tries = state(2), []

    def read() -> Iterator[Tensor]:
        tries.append(1)
        for number, tensor in enumerate(tensors.values()):
            if number == 2 and len(tries) == 1:
                servers.processes[1].kill()
                servers.processes[1].join()
            yield tensor

    answers = trainer.deliver(tensors, "2", read)
    assert taken(answers) == [True, False, True]
    first, third = servers.served(0, 2)
    assert first == third
    assert first[0] == "2"
    [said] = trainer.said
    assert "did not reach all policy servers" in said
    assert "sent again to the 2 policy servers that are left" in said


def test_one_that_hangs_holds_nobody_for_ever(
    servers: Servers, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.stall = 10.0  # a busy machine takes seconds to form a group
    monkeypatch.setattr(broadcast, "STALL_SECONDS", servers.stall)
    servers.start(1, 1)
    tensors, hanging = state(2), servers.processes[1].pid
    assert hanging is not None

    def read() -> Iterator[Tensor]:
        for number, tensor in enumerate(tensors.values()):
            if number == 2:
                os.kill(hanging, signal.SIGSTOP)
            yield tensor

    assert taken(trainer.deliver(tensors, "2", read)) == [True, False]
    os.kill(hanging, signal.SIGCONT)
    assert [version for version, _ in servers.served(0, 1)] == ["2", "0"]


def test_who_refuses_joins_no_group(servers: Servers, trainer: Trainer) -> None:
    servers.start(1, 1)
    servers.start(1, width=4)
    answers = trainer.deliver(state(1), "1")
    assert taken(answers) == [True, True, False]
    assert "does not fit the served model" in str(answers[2])
    assert len(trainer.groups) == 1
    assert trainer.said == []
    # Without it, `1 + all workers` ranks would have waited for each other.
    assert servers.served(2)[0][0] == "0"


def test_numbers_that_are_not_finite_are_loaded_by_nobody(servers: Servers, trainer: Trainer) -> None:
    servers.start(1, 1)
    before = servers.served(0, 1)
    tensors = state(1)
    tensors["1.weight"][3, 3] = float("inf")
    answers = trainer.deliver(tensors, "1")
    assert ["1.weight arrived with numbers that are not finite" in str(answer) for answer in answers] == [True, True]
    assert servers.served(0, 1) == before
    assert len(trainer.groups) == 1


def test_if_a_try_fails_and_all_seem_well_each_gets_it_by_itself(servers: Servers, trainer: Trainer) -> None:
    servers.start(1, 1)
    tensors, tries = state(1), []

    def read() -> Iterator[Tensor]:
        tries.append(1)
        yield from list(tensors.values())[:2]
        if len(tries) == 1:
            raise OSError("once")
        yield from list(tensors.values())[2:]

    assert taken(trainer.deliver(tensors, "1", read)) == [True, True]
    first, second = servers.served(0, 1)
    assert first == second
    assert first[0] == "1"
    assert len(trainer.groups) == 3
    assert "(once); all seem well, and it is sent to each by itself" in trainer.said[0]


def test_a_trainer_that_fails_on_the_way_changes_nothing(servers: Servers, trainer: Trainer) -> None:
    servers.start(1, 1)
    before, tensors = servers.served(0, 1), state(1)

    def read() -> Iterator[Tensor]:
        yield from list(tensors.values())[:2]
        raise OSError("the disk is gone")

    answers = trainer.deliver(tensors, "1", read)
    for answer in answers:
        assert isinstance(answer, ServiceError)
        assert "the disk is gone" in str(answer)
        assert "version 0 is still served" in str(answer)
        assert answer.status is None  # an outage, which the run waits for
    assert servers.served(0, 1) == before
    assert "the disk is gone" in trainer.said[0]
    assert "to each by itself" in trainer.said[0]
