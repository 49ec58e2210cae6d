"""Families of models whose logits or attention are not plain: scored as they compute, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from research.errors import ResearchError
from services.trainer.learner.update import SupervisedTokenLoss
from services.trainer.model import forward
from services.trainer.model.batching import TrainingSequence, collate
from services.trainer.model.forward import load_model
from services.trainer.model.memory import activation_bytes_per_token, enable_checkpointing

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEQUENCES = [TrainingSequence([5, 9, 3, 7, 8, 4, 11], [3, 4, 6], [-4.0] * 3, prompt_length=3)]


def saved(name: str, path: Path, **more: Any) -> tuple[Path, Any]:
    """A tiny model of a family, with weights large enough that a forgotten factor shows."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **more)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(path)
    return path, model


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", {}),
        ("Qwen2", {}),
        ("Qwen3", {}),
        ("Mistral", {"sliding_window": 64}),
        ("Granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.2}),
        ("Cohere", {"logit_scale": 0.0625}),
        ("Phi3", {}),
    ],
)
def test_a_family_is_scored_as_it_computes(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    path, model = saved(family, tmp_path, **settings)
    scored = load_model(path, CPU, 1.0, torch.float32)
    batch = collate(SEQUENCES, [0], [1.0], CPU)
    with torch.no_grad():
        found = scored(batch).logprobs
        table = torch.log_softmax(model(torch.tensor([SEQUENCES[0].token_ids])).logits[0], dim=-1)
    expected = [table[p - 1, SEQUENCES[0].token_ids[p]].item() for p in SEQUENCES[0].sampled_positions]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_gemma_caps_its_attention_too_and_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = saved("Gemma2", tmp_path, final_logit_softcapping=5.0, sliding_window=64)
    with pytest.raises(ResearchError, match=r"Gemma2Attention caps its attention"):
        load_model(path, CPU, 1.0, torch.float32)


def test_capped_logits_alone_are_applied(tmp_path: Path) -> None:
    path, _ = saved("Gemma2", tmp_path, final_logit_softcapping=2.0, attn_logit_softcapping=None, sliding_window=64)
    load_model(path, CPU, 1.0, torch.float32)  # compares itself with the model's own forward


def test_a_factor_that_is_not_known_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = saved("Cohere", tmp_path, logit_scale=0.0625)
    monkeypatch.setattr(forward, "_scale_and_cap", lambda config: (1.0, None))
    with pytest.raises(ResearchError, match=r"CohereForCausalLM.*nats away"):
        load_model(path, CPU, 1.0, torch.float32)


def test_checkpointing_changes_no_gradient_and_keeps_less(tmp_path: Path) -> None:
    path, _ = saved("Llama", tmp_path, attention_dropout=0.1)
    gradients, kept = [], []
    for on in (False, True):
        model = load_model(path, CPU, 1.0, torch.float32)
        if on:
            enable_checkpointing(model)
        kept.append(activation_bytes_per_token(model, CPU))
        batch = collate(SEQUENCES, [0], [0.3], CPU)
        model(batch, SupervisedTokenLoss(batch, torch.ones(()))).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other)
    assert kept[1] < 0.5 * kept[0]
