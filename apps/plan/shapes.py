"""Sizes of a language model, from its configuration; of a few models also without one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.errors import AssetError
from research.model_paths import local_checkpoint
from research.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder with gated feed-forward layers and grouped-query attention."""

    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, without biases and norms, which are some thousandths."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.ffn

    @property
    def embedding_parameters(self) -> int:
        """Parameters of embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.embedding_parameters

    def lora_parameters(self, rank: int) -> int:
        """Parameters of LoRA's factors beside all linear layers."""
        attention = 2 * (self.hidden + self.heads * self.head_dim) + 2 * (self.hidden + self.kv_heads * self.head_dim)
        return self.layers * rank * (attention + 3 * (self.hidden + self.ffn))

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers, in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


# As the models' own config.json files have it.
KNOWN = {
    "Qwen/Qwen2.5-1.5B-Instruct": ModelShape(1536, 28, 8960, 12, 2, 128, 151_936, True),
    "Qwen/Qwen2.5-3B-Instruct": ModelShape(2048, 36, 11_008, 16, 2, 128, 151_936, True),
    "Qwen/Qwen2.5-7B-Instruct": ModelShape(3584, 28, 18_944, 28, 4, 128, 152_064, False),
    "Qwen/Qwen2.5-32B-Instruct": ModelShape(5120, 64, 27_648, 40, 8, 128, 152_064, False),
}


def shape_of(settings: Settings) -> ModelShape:
    """The shape of `model.name`. Raises AssetError if the model is neither here nor known."""
    try:
        checkpoint = local_checkpoint(settings.model.name, settings.paths.data)
    except AssetError:
        if settings.model.name in KNOWN:
            return KNOWN[settings.model.name]
        raise
    return from_config(json.loads(Path(checkpoint / "config.json").read_text(encoding="utf-8")))


def from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape in a Hugging Face config.json."""
    heads = config["num_attention_heads"]
    return ModelShape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        ffn=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
    )
