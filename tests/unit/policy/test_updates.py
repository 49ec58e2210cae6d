"""An update that fails at any point leaves the old weights serving, and one that hangs says so.

vLLM's engine client is a recorder.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from research.errors import AssetError
from services.policy.weights import updates as limits
from services.policy.weights.checkpoint_checks import TensorSpec
from services.policy.weights.finite import require_finite
from services.policy.weights.updates import UpdateFailedError, UpdateTimedOutError, WeightUpdates

CALLS = (
    "init_weight_transfer_engine",
    "pause_generation",
    "start_weight_update",
    "update_weights",
    "finish_weight_update",
)


@dataclass
class RecordingEngine:
    """What the engine would compute with, and whether requests are frozen.

    Calls fail by name, so many times; like vLLM's, it takes no further call before one that `hangs` has returned.
    """

    failures: dict[str, int] = field(default_factory=dict)
    hangs: str = ""
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    loaded: str = "base"
    open_session: bool = False
    frozen: bool = False
    slow: asyncio.Event | None = None
    versions: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)

    async def _may_hang(self, call: str) -> None:
        if call == self.hangs or self.hangs == "everything":
            self.hangs = "everything"
            await self.goes_on.wait()

    def _may_fail(self, call: str) -> None:
        if self.failures.get(call, 0) > 0:
            self.failures[call] -= 1
            raise RuntimeError(f"{call} failed")

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        await self._may_hang("pause_generation")
        self.frozen = True
        self._may_fail("pause_generation")

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[str | None]:
        assert method == "research_try"
        call, *arguments = args
        await self._may_hang(call)
        try:
            self._may_fail(call)
            await getattr(self, f"_{call}")(*arguments)
        except (AssertionError, RuntimeError) as error:
            return [f"{error}"]
        return [None]

    async def _init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        assert info == {}

    async def _start_weight_update(self) -> None:
        assert not self.open_session, "vLLM refuses a second session"
        self.open_session, self.loaded = True, "half"

    async def _update_weights(self, info: dict[str, str]) -> None:
        if self.slow is not None:
            await self.slow.wait()
        self.loaded = Path(info.get("path") or info["received"]).name

    async def _finish_weight_update(self) -> None:
        assert self.open_session
        self.open_session = False

    async def _research_abandon_update(self) -> None:
        self.open_session = False

    async def check_health(self) -> None:
        self._may_fail("check_health")

    async def _research_receive_weights(self, group_id: str, first_rank: int, ranks: int, tensors: list[Any]) -> None:
        assert (first_rank, ranks) == (1, 2)
        assert tensors == [("weight", "F32", [2, 3])]
        if self.slow is not None:
            await self.slow.wait()
        self.received.append(group_id)

    async def _research_keep_received(self, group_ids: list[str]) -> None:
        self.received = [group_id for group_id in self.received if group_id in group_ids]

    async def is_paused(self) -> bool:
        await self._may_hang("is_paused")
        return self.frozen

    async def reset_prefix_cache(self, reset_running_requests: bool) -> None:
        await self._may_hang("reset_prefix_cache")
        self._may_fail("reset_prefix_cache")

    async def resume_generation(self) -> None:
        await self._may_hang("resume_generation")
        self._may_fail("resume_generation")
        self.frozen = False

    async def update_weight_version(self, version: str) -> None:
        self.versions.append(version)


def checkpoint(path: Path, value: float = 1.0) -> Path:
    path.mkdir(parents=True)
    save_file({"weight": torch.full((2, 3), value)}, path / "model.safetensors")
    return path


def with_updates(
    tmp_path: Path, engine: RecordingEngine, scenario: Callable[[WeightUpdates, Path], Awaitable[None]]
) -> WeightUpdates:
    async def main() -> WeightUpdates:
        updates = WeightUpdates(engine, checkpoint(tmp_path / "base"), tmp_path / "runs")
        await updates.announce_initial_version()
        async with asyncio.timeout(10):
            await scenario(updates, checkpoint(tmp_path / "runs" / "new", 2.0))
        return updates

    return asyncio.run(main())


@pytest.mark.parametrize("call", CALLS)
def test_a_failure_at_any_call_leaves_the_old_weights_and_the_next_update_succeeds(tmp_path: Path, call: str) -> None:
    engine = RecordingEngine({call: 1})

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        with pytest.raises(UpdateFailedError, match=f"{call} failed.*version 0 is still served"):
            await updates.apply(str(new), "1")
        assert (engine.loaded, engine.open_session, engine.frozen) == ("base", False, False)
        assert (updates.version, updates.fault) == ("0", None)
        await updates.apply(str(new), "2")

    updates = with_updates(tmp_path, engine, scenario)
    assert (engine.loaded, engine.frozen) == ("new", False)
    assert (updates.version, Path(str(updates.source)).name) == ("2", "new")


@pytest.mark.parametrize(
    "call", ["start_weight_update", "update_weights", "finish_weight_update", "reset_prefix_cache"]
)
def test_when_the_old_weights_do_not_load_either_nobody_is_answered_until_some_do(tmp_path: Path, call: str) -> None:
    engine = RecordingEngine({call: 2})

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        with pytest.raises(UpdateFailedError, match="no request is answered"):
            await updates.apply(str(new), "1")
        assert engine.frozen
        assert updates.fault is not None
        await updates.apply(str(new), "2")
        assert (engine.loaded, engine.frozen, updates.fault) == ("new", False, None)

    with_updates(tmp_path, engine, scenario)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_before_anything_is_frozen(tmp_path: Path, number: float) -> None:
    engine = RecordingEngine()

    async def scenario(updates: WeightUpdates, _new: Path) -> None:
        bad = checkpoint(tmp_path / "runs" / "bad", number)
        with pytest.raises(AssetError, match=r"weight in .* not finite"):
            await updates.apply(str(bad), "1")

    assert with_updates(tmp_path, engine, scenario).version == "0"
    assert engine.loaded == "base"


def test_a_caller_that_hangs_up_does_not_leave_it_half_done(tmp_path: Path) -> None:
    engine = RecordingEngine()

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        engine.slow = asyncio.Event()
        asked = asyncio.create_task(updates.apply(str(new), "1"))
        while not engine.open_session:  # noqa: ASYNC110 (the file is read in a thread first)
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        engine.slow.set()
        while engine.frozen:  # noqa: ASYNC110
            await asyncio.sleep(0)

    updates = with_updates(tmp_path, engine, scenario)
    assert (engine.loaded, updates.version) == ("new", "1")


@pytest.mark.parametrize("failures", [{}, {"update_weights": 1}, {"pause_generation": 1}])
def test_who_paused_the_server_by_hand_finds_it_paused_after_an_update(
    tmp_path: Path, failures: dict[str, int]
) -> None:
    engine = RecordingEngine(dict(failures))

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        engine.frozen = True
        with suppress(UpdateFailedError):
            await updates.apply(str(new), "1")
        assert engine.frozen

    with_updates(tmp_path, engine, scenario)
    assert engine.loaded == ("base" if failures else "new")


def test_who_paused_it_by_hand_finds_it_paused_even_after_a_fault(tmp_path: Path) -> None:
    engine = RecordingEngine({"update_weights": 2})

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        engine.frozen = True
        with pytest.raises(UpdateFailedError, match="no request is answered"):
            await updates.apply(str(new), "1")
        await updates.apply(str(new), "2")
        assert engine.frozen

    with_updates(tmp_path, engine, scenario)


def test_if_requests_cannot_be_resumed_it_is_told_and_the_next_update_resumes_them(tmp_path: Path) -> None:
    engine = RecordingEngine({"resume_generation": 1})

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        with pytest.raises(UpdateFailedError, match="could not be resumed"):
            await updates.apply(str(new), "1")
        assert updates.fault is not None
        await updates.apply(str(new), "2")
        assert (engine.frozen, updates.fault) == (False, None)

    with_updates(tmp_path, engine, scenario)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FREEZE_SECONDS", "LOAD_SECONDS", "RESUME_SECONDS", "DISCARD_SECONDS"):
        monkeypatch.setattr(limits, name, 0.05)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("call", ["is_paused", *CALLS, "reset_prefix_cache", "resume_generation"])
def test_a_call_that_hangs_is_told_and_the_next_update_mends_it_once_the_engine_answers(
    tmp_path: Path, call: str
) -> None:
    engine = RecordingEngine(hangs=call)

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        for version in ("1", "2"):
            with pytest.raises(UpdateFailedError, match=r"(within 0\.05 s.*no request|resumed).*until an update"):
                await updates.apply(str(new), version)
            assert not updates.busy
            assert updates.fault is not None
        engine.hangs = ""
        engine.goes_on.set()
        await updates.apply(str(new), "3")
        assert (engine.loaded, engine.frozen, updates.fault) == ("new", False, None)

    assert with_updates(tmp_path, engine, scenario).version == "3"


def test_a_disk_that_hangs_freezes_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, answers = threading.Event(), require_finite

    def hanging(checkpoint: Path) -> None:
        disk.wait(10)
        answers(checkpoint)

    monkeypatch.setattr(limits, "READ_SECONDS", 0.2)
    monkeypatch.setattr(limits, "require_finite", hanging)
    engine = RecordingEngine()

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        for _ in range(2):
            with pytest.raises(UpdateTimedOutError, match=r"could not be read .* version 0 is still served"):
                await updates.apply(str(new), "1")
            assert (engine.frozen, updates.busy, updates.fault) == (False, False, None)
        disk.set()
        monkeypatch.setattr(limits, "READ_SECONDS", 5)
        await updates.apply(str(new), "2")

    assert with_updates(tmp_path, engine, scenario).version == "2"


TENSORS = {"weight": TensorSpec("F32", (2, 3))}


def test_what_was_received_is_kept_only_while_it_is_served(tmp_path: Path) -> None:
    engine = RecordingEngine()

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        await updates.receive("first", 1, 2, TENSORS, "1")
        assert (engine.loaded, engine.received) == ("first", ["first"])
        engine.failures["update_weights"] = 1
        with pytest.raises(UpdateFailedError, match="version 1 is still served"):
            await updates.receive("second", 1, 2, TENSORS, "2")
        assert (engine.loaded, engine.received) == ("first", ["first"])
        with pytest.raises(AssetError, match="more is not part"):
            await updates.receive("third", 1, 2, {**TENSORS, "more": TensorSpec("F32", (1,))}, "3")
        await updates.apply(str(new), "4")
        assert (engine.loaded, engine.received) == ("new", [])

    with_updates(tmp_path, engine, scenario)


def test_who_would_not_take_weights_says_so_before_a_group_waits_for_it(tmp_path: Path) -> None:
    engine = RecordingEngine({"check_health": 1})

    async def scenario(updates: WeightUpdates, _new: Path) -> None:
        with pytest.raises(UpdateFailedError, match="check_health failed"):
            await updates.consider(TENSORS)
        with pytest.raises(AssetError, match="weight is missing"):
            await updates.consider({})
        with pytest.raises(AssetError, match=r"weight is I64 \[2, 3\]"):
            await updates.consider({"weight": TensorSpec("I64", (2, 3))})
        await updates.consider(TENSORS)

    assert with_updates(tmp_path, engine, scenario).version == "0"


def test_a_group_that_nobody_joins_is_told_and_blocks_no_further_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.policy.weights.updates.RECEIVE_SECONDS", 0.05)
    engine = RecordingEngine()

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        engine.slow = asyncio.Event()
        with pytest.raises(UpdateFailedError, match="restart this server"):
            await updates.receive("first", 1, 2, TENSORS, "1")
        assert updates.fault is not None
        with pytest.raises(UpdateFailedError, match="restart this server"):
            await updates.apply(str(new), "2")
        with pytest.raises(UpdateFailedError, match="restart this server"):
            await updates.consider(TENSORS)

    with_updates(tmp_path, engine, scenario)


def test_updates_at_the_same_time_come_one_after_the_other(tmp_path: Path) -> None:
    engine = RecordingEngine()

    async def scenario(updates: WeightUpdates, new: Path) -> None:
        other = checkpoint(tmp_path / "runs" / "other", 3.0)
        await asyncio.gather(updates.apply(str(new), "1"), updates.apply(str(other), "2"))

    updates = with_updates(tmp_path, engine, scenario)
    assert engine.versions[0] == "0"
    assert sorted(engine.versions[1:]) == ["1", "2"]
    assert engine.versions[-1] == updates.version
    assert engine.loaded == Path(str(updates.source)).name
