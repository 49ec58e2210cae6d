"""A Llama of two small layers on disk: the learner's real code on a model that computes in milliseconds."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from research.config import load_settings
from research.settings import Settings
from services.trainer.model.batching import TrainingSequence

VOCABULARY = 60


def write_tiny_model(path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def write_thin_model(path: Path, base: Path) -> Path:
    """A model with the tokenizer and all the layers of `base`, thin ones with random weights, that vLLM can serve."""
    shutil.copytree(base, path, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(base)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    config.update({"hidden_size": 128, "intermediate_size": 256, **heads})
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def tiny_settings(tmp_path: Path, *overrides: str) -> Settings:
    """float32 throughout, so that differences are real and not rounding; the rest is plain GRPO."""
    base = ["model.dtype=float32", "trainer.threads=1", "optimizer.frozen_layers=0", "optimizer.learning_rate=1e-3"]
    base += ["grpo.scale_advantages=true", "optimizer.schedule=constant", "optimizer.warmup_steps=3"]
    return load_settings(overrides=[f"paths.runs={tmp_path}/runs", *base, *overrides])


def random_sequences(count: int, seed: int) -> list[TrainingSequence]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        length = rng.randint(8, 30)
        positions = sorted(rng.sample(range(3, length), rng.randint(2, length - 4)))
        made.append(
            TrainingSequence(
                token_ids=[rng.randrange(VOCABULARY) for _ in range(length)],
                sampled_positions=positions,
                sampler_logprobs=[-rng.uniform(3.5, 4.5) for _ in positions],
                advantages=[rng.uniform(-1.5, 1.5)] * len(positions),
            )
        )
    return made


def flat_parameters(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
