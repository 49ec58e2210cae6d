"""Either rank is killed or stopped in each phase: the other ends soon and says who, and the run goes on as unbroken."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from research.errors import ConfigurationError
from services.trainer.parallel.ranks import OWN_STORE, Ranks
from services.trainer.parallel.shards import SavedTensors
from tests.conftest import REPOSITORY
from tests.support.lost_ranks_child import BOUND_SECONDS, PHASES, STEPS, half_written, train
from tests.support.tiny_model import write_tiny_model

# What a connection that was closed costs until it is named, and a start of a process; machines are noisy.
SLACK_SECONDS = 45.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@contextmanager
def two_ranks(port: int, model: Path, work: Path, phase: str, **kwargs: float) -> Iterator[list[BaseProcess]]:
    """Two processes; the fork server imports torch once for all of them. None is left at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.lost_ranks_child"])
    (work / "dwells").unlink(missing_ok=True)
    ranks: list[BaseProcess] = [
        context.Process(target=train, args=(rank, port, model, work, phase), kwargs=kwargs, daemon=True)
        for rank in (0, 1)
    ]
    try:
        for process in ranks:
            process.start()
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.join()


def await_dwelling(work: Path) -> None:
    deadline = time.monotonic() + 300
    while not (work / "dwells").exists():
        assert time.monotonic() < deadline, logs(work)
        time.sleep(0.01)


def logs(work: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(work.glob("log-*")))


def lose(rank: int, how: signal.Signals, phase: str, port: int, model: Path, work: Path) -> None:
    """Lose a rank in a phase, and check what the other makes of it."""
    with two_ranks(port, model, work, phase) as ranks:
        await_dwelling(work)
        lost, left = ranks[rank], ranks[1 - rank]
        assert lost.pid is not None
        os.kill(lost.pid, how)
        left.join(BOUND_SECONDS + SLACK_SECONDS)
        case = f"{how.name} of rank {rank} in {phase!r}"
        assert left.exitcode == 1, f"{case}: {logs(work)}"
        said = (work / f"log-{1 - rank}").read_text()
        assert f"rank {rank} (process {lost.pid} on " in said, f"{case}: {said}"
        assert not half_written(work), case


def final_state(work: Path) -> dict[str, torch.Tensor]:
    [checkpoint] = (work / "checkpoints").glob(f"step-{STEPS:06d}*")
    assert json.loads((checkpoint / "state.json").read_text())["step"] == STEPS
    found: dict[str, torch.Tensor] = {}
    for name in ("model", "optimizer"):
        tensors = SavedTensors(checkpoint, name)
        found |= {f"{name}.{key}": tensors.assembled(key) for key in tensors.names()}
    return found


def finish(port: int, model: Path, work: Path, linger: float = 0.0) -> None:
    with two_ranks(port, model, work, "", linger=linger) as ranks:
        for process in ranks:
            process.join(300)
        assert [process.exitcode for process in ranks] == [0, 0], logs(work)


def assert_same_end(one: Path, other: Path) -> None:
    mine, its = final_state(one), final_state(other)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[key], its[key]) for key in mine)


@pytest.fixture(scope="module")
def unbroken(tiny: Path, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Path:
    """A run that lost nobody; rank 0 stays longer than the bound after the other has left, and is not alarmed."""
    work = tmp_path_factory.mktemp("unbroken")
    finish(free_port(), tiny, work, linger=BOUND_SECONDS + 1)
    return work


def test_a_rank_that_is_lost_is_named_and_the_run_goes_on(
    tiny: Path, tmp_path: Path, unbroken: Path, free_port: Callable[[], int]
) -> None:
    killed = [(signal.SIGKILL, phase) for phase in PHASES]
    stopped = [(signal.SIGSTOP, phase) for phase in ("wait", "update")]
    for how, phase in killed + stopped:
        for rank in (0, 1):
            lose(rank, how, phase, free_port(), tiny, tmp_path)
    finish(free_port(), tiny, tmp_path)
    assert_same_end(tmp_path, unbroken)


def test_ranks_that_were_stopped_together_blame_nobody(
    tiny: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """As by Ctrl-Z, or a scheduler that suspends a job; the time itself is what is tested."""
    with two_ranks(free_port(), tiny, tmp_path, "update") as ranks:
        await_dwelling(tmp_path)
        for how in (signal.SIGSTOP, signal.SIGCONT):
            for process in ranks:
                assert process.pid is not None
                os.kill(process.pid, how)
            time.sleep(BOUND_SECONDS + 1)
        assert all(process.is_alive() for process in ranks), logs(tmp_path)


def test_a_rank_that_fails_alone_keeps_nobody_waiting(tiny: Path, tmp_path: Path, free_port: Callable[[], int]) -> None:
    with two_ranks(free_port(), tiny, tmp_path, "alone") as ranks:
        await_dwelling(tmp_path)
        for process in ranks:
            process.join(BOUND_SECONDS + SLACK_SECONDS)
        assert [process.exitcode for process in ranks] == [1, 1], logs(tmp_path)
    assert "rank 0 (process " in (tmp_path / "log-1").read_text()


def test_torchrun_starts_the_ranks_again_and_they_go_on(tiny: Path, tmp_path: Path, unbroken: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    child = ["-m", "tests.support.lost_ranks_child", str(tiny), str(tmp_path), "update"]
    with (tmp_path / "log-torchrun").open("wb") as log:
        command, environment = [sys.executable, *torchrun, *child], os.environ | {OWN_STORE: "1"}
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    try:
        await_dwelling(tmp_path)
        leader = int((tmp_path / "process-0").read_text())
        os.kill(leader, signal.SIGKILL)
        assert process.wait(300) == 0, logs(tmp_path)
    finally:
        process.terminate()  # it ends its ranks, too
        process.wait()
    assert f"pid: {leader}" in logs(tmp_path)
    assert not half_written(tmp_path)
    assert_same_end(tmp_path, unbroken)


def test_ranks_that_torchrun_starts_again_in_the_former_store_say_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for the addresses of the former ranks, and fail without a word of why."""
    torchrun = {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=OWN_STORE):
        Ranks.join("cpu")
