"""What a trainer does when it is started again is what it was told last."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from research.errors import ConfigurationError
from research.settings import Settings
from services.trainer.controller import RunController
from services.trainer.run_dir.wanted import FILE, Wanted, read_wanted, write_wanted
from services.trainer.status import RunPhase
from tests.support.tiny_model import tiny_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return tiny_settings(tmp_path)


def test_an_order_is_kept(settings: Settings) -> None:
    assert read_wanted(settings.run_dir) is None
    for wish in Wanted:
        write_wanted(settings.run_dir, wish)
        assert read_wanted(settings.run_dir) is wish


@pytest.mark.parametrize("content", ["", "{", "[]", '{"wanted": "dancing"}', '{"other": 1}', "\0\0\0"])
def test_a_file_that_cannot_be_read_is_no_order(settings: Settings, content: str) -> None:
    settings.run_dir.mkdir(parents=True)
    (settings.run_dir / FILE).write_text(content)
    assert read_wanted(settings.run_dir) is None


@pytest.mark.parametrize(
    ("wish", "phase"), [(Wanted.PAUSED, RunPhase.PAUSED), (Wanted.STOPPED, RunPhase.STOPPED), (None, RunPhase.IDLE)]
)
def test_what_was_paused_or_stopped_on_purpose_stays_so(
    settings: Settings, wish: Wanted | None, phase: RunPhase
) -> None:
    if wish is not None:
        write_wanted(settings.run_dir, wish)
    controller = RunController(settings, keeps_orders=True)
    controller.come_back()
    assert controller.status.phase is phase
    assert not controller.is_running
    assert not controller.is_wanted


def test_a_finished_run_is_not_begun_again(settings: Settings) -> None:
    write_wanted(settings.run_dir, Wanted.RUNNING)
    (settings.run_dir / "summary.json").write_text(json.dumps({"steps": settings.grpo.steps}))
    controller = RunController(settings, keeps_orders=True)
    controller.come_back()
    assert controller.status.phase is RunPhase.FINISHED
    assert not controller.is_running


async def _goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> RunController:
    monkeypatch.delenv("RESEARCH_ADMIN_TOKEN", raising=False)
    controller = RunController(settings, keeps_orders=True)
    controller.come_back()
    assert controller.is_running
    await controller.cancel()
    return controller


def test_what_was_under_way_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wanted(settings.run_dir, Wanted.RUNNING)
    controller = asyncio.run(_goes_on(settings, monkeypatch))
    assert any("was under way when this trainer ended; it continues" in line for line in controller.status.lines)
    assert controller.is_wanted  # it was cancelled, not told to stop


def test_what_failed_waits_for_a_new_order(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for want of an admin token; an alarm that stops a run is a failure, too."""
    monkeypatch.delenv("RESEARCH_ADMIN_TOKEN", raising=False)

    async def fail() -> RunController:
        controller = RunController(settings, keeps_orders=True)
        controller.start()
        with pytest.raises(ConfigurationError):
            await controller.wait()
        return controller

    assert asyncio.run(fail()).status.phase is RunPhase.FAILED
    assert read_wanted(settings.run_dir) is None


def test_a_command_that_trains_in_the_foreground_keeps_no_orders(settings: Settings) -> None:
    async def start() -> None:
        controller = RunController(settings)
        controller.start()
        await controller.cancel()

    asyncio.run(start())
    assert read_wanted(settings.run_dir) is None
