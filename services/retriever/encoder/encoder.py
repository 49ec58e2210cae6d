"""Texts to unit vectors, E5 style: prefix, tokenizer, transformer, pooling, L2 norm."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from research.errors import ConfigurationError
from research.settings.retriever import EncoderConfig
from services.retriever.encoder.checkpoint import Checkpoint
from services.retriever.encoder.onnx_session import Forward, forward_of, open_session
from services.retriever.encoder.padding import CallCost, group_by_length
from services.retriever.types import TokenIds, Vectors

# ONNX int8 on one thread: a call takes 1.1 ms plus 0.125 ms per token, and more per token beyond some 400 tokens.
_CPU_COST = CallCost(call=9, most=384)
# A GPU is idle unless it gets many tokens; not measured more finely.
_CUDA_COST = CallCost(call=4096, most=32_768)


class Encoder:
    """A loaded encoder. `tokenize` and `encode` may run in one thread each, but neither in two.

    Args:
        checkpoint: the loaded checkpoint.
        settings: prefixes and token limits.
        forward: maps ids and mask, int64 [rows, tokens], to unit vectors, float32 [rows, dimension].
        cost: the cost of one call of `forward`.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EncoderConfig, forward: Forward, cost: CallCost) -> None:
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
        self._cost = cost
        self._tokenizer = Tokenizer.from_file(str(checkpoint.directory / "tokenizer.json"))
        self._tokenizer.no_padding()

    def tokenize(self, queries: Sequence[str]) -> list[TokenIds]:
        """Tokenize queries, prefix and special tokens included; longer ones are truncated to `max_query_tokens`."""
        prefix = self._settings.query_prefix
        return self._tokenize([prefix + query for query in queries], self._settings.max_query_tokens)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """Both steps at once: float32 [queries, dimension]."""
        return self.encode(self.tokenize(queries))

    def encode_passages(self, passages: Iterable[tuple[str, str]]) -> Vectors:
        """Encode (title, text) pairs into float32 [pairs, dimension], truncated to `max_passage_tokens`."""
        return self.encode_texts([f"{title} {text}" for title, text in passages])

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """As `encode_passages`, of passages that are written as one text each."""
        prefix = self._settings.passage_prefix
        return self.encode(self._tokenize([prefix + text for text in texts], self._settings.max_passage_tokens))

    def encode(self, ids: Sequence[TokenIds]) -> Vectors:
        """Encode token ids into unit vectors, float32 [rows, dimension]."""
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        for rows in group_by_length([len(row) for row in ids], self._cost):
            vectors[rows] = self._forward(*self._pad([ids[row] for row in rows]))
        return vectors

    def _tokenize(self, texts: list[str], max_tokens: int) -> list[TokenIds]:
        self._tokenizer.enable_truncation(max_tokens)
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def _pad(self, rows: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return ids, mask


def load_encoder(checkpoint: Checkpoint, settings: EncoderConfig, backend: str, threads: int, data: Path) -> Encoder:
    """Load `checkpoint` for one of the backends `torch`, `onnx`, `onnx-int8`.

    The torch backend uses the first CUDA device if there is one, else `threads` CPU threads.

    Raises:
        AssetError: weights or tokenizer are corrupt, or the ONNX graph differs from torch.
        ConfigurationError: a token limit is above that of the encoder.
    """
    return load_encoders(checkpoint, settings, backend, threads, data, most=1)[0]


def load_encoders(
    checkpoint: Checkpoint, settings: EncoderConfig, backend: str, threads: int, data: Path, most: int | None = None
) -> list[Encoder]:
    """Load `checkpoint` once per CUDA device, at most `most` times, or once for the CPU if there is no such device.

    Raises what `load_encoder` raises.
    """
    # The tokenizer reads this once, when it first works in parallel; its default is every core.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    if backend != "torch":
        forward = _onnx_forward(checkpoint, threads, data, int8=backend == "onnx-int8")
        return [Encoder(checkpoint, settings, forward, _CPU_COST)]
    import torch

    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        return [Encoder(checkpoint, settings, _torch_forward(checkpoint, "cpu", compiled=False), _CPU_COST)]
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())][:most]
    # Compiling is unsafe in several threads at once, and pays off only in a long-running process.
    compiled = most == 1
    return [Encoder(checkpoint, settings, _torch_forward(checkpoint, name, compiled), _CUDA_COST) for name in devices]


def _onnx_forward(checkpoint: Checkpoint, threads: int, data: Path, *, int8: bool) -> Forward:
    from services.retriever.encoder.onnx_export import exported_graph

    return forward_of(open_session(exported_graph(checkpoint, data, int8=int8), threads))


def _torch_forward(checkpoint: Checkpoint, device: str, compiled: bool) -> Forward:
    import torch

    from services.retriever.encoder.torch_model import load_sentence_model

    dtype = torch.float32 if device == "cpu" else torch.float16
    model = load_sentence_model(checkpoint, dtype=dtype, attention="sdpa").to(device)
    if compiled:
        # Rows and tokens differ from batch to batch; with one graph per shape, compiling would never end.
        model.compile(dynamic=True)

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        with torch.inference_mode():
            vectors: Vectors = model(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)).cpu().numpy()
        return vectors

    return forward
