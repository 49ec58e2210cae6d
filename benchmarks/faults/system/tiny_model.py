"""A real Llama of two layers with the built-in tokenizer: vLLM serves it, and a training step takes a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

BUILTIN = "smollm2-135m-instruct"


def write_tiny_model(path: Path, data: Path) -> Path:
    """Write it to `path`, unless it is there; `data` holds the built-in model, of which the tokenizer is taken."""
    import torch

    if (path / "model.safetensors").is_file():
        with safe_open(path / "model.safetensors", "pt"):
            return path
    base = data / "models" / BUILTIN
    vocabulary = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        head_dim=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    for file in base.iterdir():
        if file.name.startswith(("tokenizer", "generation", "chat_template")):
            shutil.copyfile(file, path / file.name)
    return path
