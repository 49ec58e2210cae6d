"""An exported run is an ordinary checkpoint, and its card says what the run's files say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from apps.export.export import export_run
from research.config import load_settings
from research.errors import AssetError, ConfigurationError
from services.trainer.parallel.shards import write_state
from services.trainer.weights.publisher import write_checkpoint
from tests.support.tiny_model import write_tiny_model

EVALUATED = {"one_hop": {"n": 64, "em": 0.71875, "f1": 0.72, "searches": 1.09}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two published versions, the newer one different from its base, and a third that was never finished."""
    directory = tmp_path / "runs" / "first"
    base = write_tiny_model(tmp_path / "base")
    state = AutoModelForCausalLM.from_pretrained(base).state_dict()
    write_checkpoint(partial(write_state, state), base, directory / "weights" / "version-000002", "Think first.")
    doubled = {name: tensor * 2 for name, tensor in state.items()}
    write_checkpoint(partial(write_state, doubled), base, directory / "weights" / "version-000010", "Think first.")
    (directory / "weights" / "version-000011.partial").mkdir()
    settings = load_settings("quickstart-cpu", ["run=first", "grpo.steps=2"]).model_dump(mode="json")
    (directory / "config.json").write_text(json.dumps(settings))
    (directory / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (directory / "summary.json").write_text(json.dumps({"steps": 2, "eval": {"after": EVALUATED}}))
    return directory


def test_transformers_loads_the_newest_weights(run: Path, tmp_path: Path) -> None:
    target = export_run(run, tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(target).state_dict()
    newest = AutoModelForCausalLM.from_pretrained(run / "weights" / "version-000010").state_dict()
    older = AutoModelForCausalLM.from_pretrained(run / "weights" / "version-000002").state_dict()
    assert all(torch.equal(exported[name], newest[name]) for name in newest)
    assert not all(torch.equal(exported[name], older[name]) for name in older)
    assert not list(tmp_path.glob(".*"))


def test_the_card_tells_data_steps_and_results(run: Path, tmp_path: Path) -> None:
    target = export_run(run, tmp_path / "exported")
    card = (target / "README.md").read_text()
    for fact in (
        "| after | one_hop | 0.719 | 0.720 | 1.09 | 64 |",
        "| steps | 2 of 2 |",
        "builtin:smollm2-135m-instruct",
    ):
        assert fact in card
    assert (target / "prompt.txt").read_text() == "Think first.\n", "what it was trained with, whatever a file says now"


def test_the_card_tells_how_other_programs_ask_in_the_prompts_form(run: Path, tmp_path: Path) -> None:
    def card(prompt: str) -> str:
        settings = load_settings("quickstart-cpu", ["run=first", f"episode.prompt={prompt}"]).model_dump(mode="json")
        (run / "config.json").write_text(json.dumps(settings))
        for file in ("prompt.txt", "manifest.json"):
            (run / "weights" / "version-000010" / file).unlink(missing_ok=True)  # as of a version of long ago
        return (export_run(run, tmp_path / prompt) / "README.md").read_text()

    assert "are the system message in `prompt.txt`." in card("research-instruct")
    tools = card("research-tools")
    assert "the system message in `prompt.txt`, without its first line, which names this form." in tools
    assert '"description": "Search Wikipedia; returns the passages that match best."' in tools
    assert "a user message with a place for the question (a raw text for" in card("search-r1")


def test_a_run_that_is_under_way_says_so(run: Path, tmp_path: Path) -> None:
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    card = (export_run(run, tmp_path / "exported") / "README.md").read_text()
    assert "| steps | 1 of 2 (the run is not finished) |" in card
    assert "no final evaluation yet" in card


def test_a_run_that_goes_on_has_no_results_of_its_former_end(run: Path, tmp_path: Path) -> None:
    settings = load_settings("quickstart-cpu", ["run=first", "grpo.steps=5"]).model_dump(mode="json")
    (run / "config.json").write_text(json.dumps(settings))
    card = (export_run(run, tmp_path / "exported") / "README.md").read_text()
    assert "| steps | 2 of 5 (the run is not finished) |" in card
    assert "0.719" not in card


def test_spoilt_weights_are_not_exported(run: Path, tmp_path: Path) -> None:
    weights = run / "weights" / "version-000010" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    with pytest.raises(AssetError, match=r"version-000010 is spoilt .*delete it to export the version before it"):
        export_run(run, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_nothing_is_overwritten_and_what_is_missing_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigurationError, match="exists already"):
        export_run(run, tmp_path / "taken")
    with pytest.raises(AssetError, match="there is no run"):
        export_run(tmp_path / "nothing", tmp_path / "exported")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(AssetError, match="has published no weights"):
        export_run(tmp_path / "empty", tmp_path / "exported")


def test_the_command_exports_by_name(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "export", "first", "--out", str(tmp_path / "exported")]
    done = subprocess.run(
        [*command, f"paths.runs={run.parent}"], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert f"exported: {tmp_path / 'exported'}" in done.stdout
    assert (tmp_path / "exported" / "model.safetensors").is_file()
