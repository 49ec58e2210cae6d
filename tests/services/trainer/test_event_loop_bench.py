"""The benchmark of the event loop takes the loop's own step; whoever changes the step changes it, too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks.trainer import event_loop
from research.episode.tokenizer import HuggingFaceTokenizer
from research.model_paths import local_checkpoint


def test_a_small_step_is_timed(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TURN", "SEARCH"):
        monkeypatch.setattr(event_loop, name, (0.0, 0.01))
    monkeypatch.setattr(event_loop, "REST", 0.0)
    settings, meter = event_loop.settings_of(2, f"paths.data={data_dir}"), event_loop.Meter()
    tokenizer = HuggingFaceTokenizer(AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, data_dir)))
    made_up = event_loop.MadeUp(tokenizer, data_dir / "corpus" / "wikipedia-leads.jsonl")
    asyncio.run(event_loop.step(settings, made_up, (made_up, made_up), tmp_path, meter))
    event_loop.report(meter, tmp_path)
    assert "10 episodes of " in capsys.readouterr().out
    assert meter.held > 0
    assert meter.parts["score"], "the step does not score where the benchmark looks"
