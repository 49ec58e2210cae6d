"""An encoder on disk: its files, its pooling, its dimension, and a digest of all of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from research.atomic_io import sha256_of
from research.errors import AssetError, ConfigurationError
from research.model_paths import local_checkpoint

Pooling = Literal["mean", "cls"]

_POOLING_FILE = "1_Pooling/config.json"
_POOLING_FLAGS: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An encoder checkpoint in Hugging Face layout; `digest` covers weights, tokenizer and configuration."""

    name: str
    directory: Path
    dimension: int
    heads: int
    max_tokens: int
    pad_id: int
    pooling: Pooling
    digest: str


def open_checkpoint(name: str, data: Path) -> Checkpoint:
    """Find and describe the encoder `name` (built-in, directory or hub name) without loading its weights.

    Raises:
        AssetError: it is missing, cannot be fetched, or lacks a file.
        ConfigurationError: its pooling is not supported.
    """
    directory = local_checkpoint(name, data)
    config = _read_json(directory / "config.json")
    try:
        return Checkpoint(
            name=name,
            directory=directory,
            dimension=config["hidden_size"],
            heads=config["num_attention_heads"],
            max_tokens=config["max_position_embeddings"],
            pad_id=config.get("pad_token_id") or 0,
            pooling=_pooling(directory),
            digest=_digest(directory),
        )
    except KeyError as error:
        raise AssetError(f"{directory / 'config.json'} has no {error}: this is not a BERT-like encoder") from error


def _pooling(directory: Path) -> Pooling:
    path = directory / _POOLING_FILE
    if not path.is_file():
        return "mean"
    switched_on = [key for key, value in _read_json(path).items() if key.startswith("pooling_mode_") and value is True]
    if len(switched_on) != 1 or switched_on[0] not in _POOLING_FLAGS:
        raise ConfigurationError(f"{path} asks for {switched_on}; it must be exactly one of {sorted(_POOLING_FLAGS)}")
    return _POOLING_FLAGS[switched_on[0]]


def _digest(directory: Path) -> str:
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise AssetError(f"{directory} holds no *.safetensors weights")
    fixed = [directory / name for name in ("config.json", "tokenizer.json")]
    if not fixed[1].is_file():
        raise AssetError(f"{directory} holds no tokenizer.json; save the tokenizer once with transformers")
    pooling = directory / _POOLING_FILE
    files = [*fixed, *([pooling] if pooling.is_file() else []), *weights]
    lines = [f"{path.relative_to(directory)} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AssetError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise AssetError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise AssetError(f"{path} is not a JSON object")
    return content
