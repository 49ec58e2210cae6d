"""Texts to unit vectors, E5 style: prefix, tokenise, transformer, pooling, L2 norm."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from research import config
from research.errors import ConfigurationError
from services.retriever.checkpoint import Checkpoint
from services.retriever.onnx_session import Forward, Vectors, forward_of, open_session

# Rows that share a padded tensor. On a CPU small groups of like length beat one padded batch by two thirds;
# a GPU wants many rows.
_CPU_ROWS = 8
_CUDA_ROWS = 128


class Encoder:
    """A loaded encoder. Not to be called from two threads at once.

    Args:
        checkpoint: what was loaded.
        settings: prefixes and token limits.
        forward: maps ids and mask, int64 [rows, tokens], to unit vectors, float32 [rows, dimension].
        rows: texts that go through `forward` together at most.
    """

    def __init__(self, checkpoint: Checkpoint, settings: config.Encoder, forward: Forward, rows: int) -> None:
        from tokenizers import Tokenizer

        for field in ("max_query_tokens", "max_passage_tokens"):
            if (limit := getattr(settings, field)) > checkpoint.max_tokens:
                raise ConfigurationError(
                    f"encoder.{field} is {limit}, but {checkpoint.name} reads at most {checkpoint.max_tokens} tokens"
                )
        self.dimension = checkpoint.dimension
        self._settings = settings
        self._pad_id = checkpoint.pad_id
        self._forward = forward
        self._rows = rows
        self._tokenizer = Tokenizer.from_file(str(checkpoint.directory / "tokenizer.json"))
        self._tokenizer.no_padding()

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """Encode queries into float32 [queries, dimension]; longer ones are cut at `max_query_tokens`."""
        prefix = self._settings.query_prefix
        return self._encode([prefix + query for query in queries], self._settings.max_query_tokens)

    def encode_passages(self, passages: Iterable[tuple[str, str]]) -> Vectors:
        """Encode (title, text) pairs into float32 [pairs, dimension], cut at `max_passage_tokens`."""
        prefix = self._settings.passage_prefix
        texts = [f"{prefix}{title} {text}" for title, text in passages]
        return self._encode(texts, self._settings.max_passage_tokens)

    def _encode(self, texts: list[str], max_tokens: int) -> Vectors:
        self._tokenizer.enable_truncation(max_tokens)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        for start in range(0, len(by_length), self._rows):
            rows = by_length[start : start + self._rows]
            vectors[rows] = self._forward(*self._pad([ids[row] for row in rows]))
        return vectors

    def _pad(self, rows: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return ids, mask


def load_encoder(checkpoint: Checkpoint, settings: config.Encoder, backend: str, threads: int, data: Path) -> Encoder:
    """Load `checkpoint` for one of the backends `torch`, `onnx`, `onnx-int8`.

    The torch backend takes a CUDA device where there is one; else `threads` threads of the CPU do the work.

    Raises:
        AssetError: weights or tokenizer are broken, or the ONNX graph does not agree with torch.
        ConfigurationError: a token limit is beyond what the encoder reads.
    """
    # Read once, when the tokenizer first works in parallel; its default is every core.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    if backend == "torch":
        forward, rows = _torch_forward(checkpoint, threads)
    else:
        forward, rows = _onnx_forward(checkpoint, threads, data, int8=backend == "onnx-int8"), _CPU_ROWS
    return Encoder(checkpoint, settings, forward, rows)


def _onnx_forward(checkpoint: Checkpoint, threads: int, data: Path, *, int8: bool) -> Forward:
    from services.retriever.onnx_export import exported_graph

    return forward_of(open_session(exported_graph(checkpoint, data, int8=int8), threads))


def _torch_forward(checkpoint: Checkpoint, threads: int) -> tuple[Forward, int]:
    import torch

    from services.retriever.torch_model import load_sentence_model

    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.float16 if cuda else torch.float32
    model = load_sentence_model(checkpoint, dtype=dtype, attention="sdpa").to(device)

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        with torch.inference_mode():
            vectors: Vectors = model(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)).cpu().numpy()
        return vectors

    return forward, _CUDA_ROWS if cuda else _CPU_ROWS
