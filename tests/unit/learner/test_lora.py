"""LoRA on the tiny model: what is trained, what the reference is, and that what is published is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from research.errors import ConfigurationError
from services.trainer.learner.learner import Learner
from services.trainer.model.lora import MergedState
from services.trainer.run_dir.checkpoints import CheckpointStore, RunState
from tests.support.tiny_model import random_sequences, tiny_settings, write_tiny_model

LORA = ("lora.rank=4", "lora.alpha=8", "optimizer.learning_rate=1e-2", "optimizer.warmup_steps=0", "sft.enabled=false")
SEQUENCES = random_sequences(5, seed=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def trained(tiny: Path, tmp_path: Path, *overrides: str, steps: int = 3) -> Learner:
    learner = Learner(tiny_settings(tmp_path, *LORA, *overrides), tiny)
    for step in range(steps):
        assert learner.grpo_update(random_sequences(4, seed=step)) is not None
    return learner


def flat(values: list[list[float]]) -> list[float]:
    return [value for row in values for value in row]


def test_factors_begin_as_no_change_and_are_all_that_is_trained(tiny: Path, tmp_path: Path) -> None:
    plain = Learner(tiny_settings(tmp_path), tiny).logprobs(SEQUENCES)
    learner = Learner(tiny_settings(tmp_path, *LORA), tiny)
    assert flat(learner.logprobs(SEQUENCES)) == pytest.approx(flat(plain), abs=1e-5)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    assert learner.grpo_update(SEQUENCES) is not None
    changed = {name for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert flat(learner.logprobs(SEQUENCES)) != pytest.approx(flat(plain), abs=1e-4)


def test_the_reference_is_the_model_without_its_factors(tiny: Path, tmp_path: Path) -> None:
    learner = trained(tiny, tmp_path, "grpo.kl_coefficient=0.01")
    report = learner.grpo_update(random_sequences(4, seed=9))
    assert report is not None
    assert report.kl > 0
    assert learner.reference is None
    first = Learner(tiny_settings(tmp_path, *LORA, "grpo.kl_coefficient=0.01"), tiny).grpo_update(SEQUENCES)
    assert first is not None
    assert first.kl == pytest.approx(0, abs=1e-9)


def test_merged_weights_and_the_adapter_both_say_what_the_learner_says(tiny: Path, tmp_path: Path) -> None:
    learner = trained(tiny, tmp_path)
    expected = learner.logprobs(SEQUENCES)
    merged = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    state = MergedState(learner.model)
    assert set(state) == set(merged.state_dict())
    merged.load_state_dict(dict(state))
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    path = store.save(learner, RunState(1, 1, learner.updates, {}, {}))
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(path))
    for model in (merged, adapted):
        for sequence, own in zip(SEQUENCES, expected, strict=True):
            with torch.no_grad():
                table = torch.log_softmax(model(torch.tensor([sequence.token_ids])).logits[0], dim=-1)
            found = [table[p - 1, sequence.token_ids[p]].item() for p in sequence.sampled_positions]
            assert found == pytest.approx(own, abs=1e-4)


def test_published_weights_have_the_names_and_dtypes_of_the_base(tiny: Path, tmp_path: Path) -> None:
    learner = trained(tiny, tmp_path)
    (tmp_path / "out").mkdir()
    learner.write_weights(tiny, tmp_path / "out")
    gathered = learner.gather_weights(tiny)
    base, found = load_file(tiny / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in base.items()}
    assert any(not torch.equal(found[name], base[name]) for name in base)
    assert gathered.keys() == found.keys()
    assert all(torch.equal(gathered[name], found[name]) and gathered[name].dtype == found[name].dtype for name in found)


def test_a_resumed_run_is_the_unbroken_one_and_its_checkpoint_is_small(tiny: Path, tmp_path: Path) -> None:
    unbroken = trained(tiny, tmp_path, "grpo.kl_coefficient=0.01")
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    path = store.save(unbroken, RunState(1, 1, unbroken.updates, {}, {}))
    assert (path / "model.safetensors").stat().st_size < (tiny / "model.safetensors").stat().st_size
    resumed = Learner(tiny_settings(tmp_path, *LORA, "grpo.kl_coefficient=0.01"), tiny)
    assert store.restore_latest(resumed) is not None
    for learner in (unbroken, resumed):
        assert learner.grpo_update(random_sequences(4, seed=7)) is not None
    mine, other = unbroken.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ('["embed_tokens"]', "model.embed_tokens is no linear layer"),
        ('["q_proj", "input_layernorm"]', "model.layers.0.input_layernorm is no linear layer"),
        ('["q_proj", "lm_head"]', "lm_head is no linear layer of the model's blocks"),
        ('["nope", "neither"]', "this model has no nope, neither"),
    ],
)
def test_only_linear_layers_get_factors(tiny: Path, tmp_path: Path, targets: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Learner(tiny_settings(tmp_path, *LORA, f"lora.targets={targets}"), tiny)


@pytest.mark.parametrize("overrides", [("optimizer.frozen_layers=1",), ("sft.enabled=true", "grpo.kl_coefficient=0.1")])
def test_what_lora_cannot_do_is_refused(tiny: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"LoRA"):
        Learner(tiny_settings(tmp_path, *LORA, *overrides), tiny)
