"""The converter, on a tiny packed file written here from the format's description."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from builtin.convert_e5 import convert_packed_e5
from research.errors import AssetError

HIDDEN, FEED_FORWARD, POSITIONS, TYPES = 32, 64, 16, 2
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁night", "▁star", "ry", "<mask>"]


def quantised(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Pack to 4 bits and also return what must come back."""
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 7).astype(np.float16)
    levels = np.clip(np.round(blocks / scales.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = np.concatenate([scales.view(np.uint8).reshape(-1, 2), levels[:, :16] | levels[:, 16:] << 4], axis=1)
    return packed.tobytes(), ((levels.astype(np.float32) - 8) * scales.astype(np.float32)).reshape(values.shape)


def packed_file() -> tuple[bytes, dict[str, np.ndarray]]:
    """A whole file with one layer, and its tensors as they must come out."""
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "emb.word": (len(PIECES), HIDDEN),
        "emb.pos": (POSITIONS, HIDDEN),
        "emb.type": (TYPES, HIDDEN),
    }
    shapes |= {"emb.ln.w": (HIDDEN,), "emb.ln.b": (HIDDEN,)}
    for name, out, inner in [
        *((name, HIDDEN, HIDDEN) for name in ("q", "k", "v", "ao")),
        ("fi", FEED_FORWARD, HIDDEN),
        ("fo", HIDDEN, FEED_FORWARD),
    ]:
        shapes |= {f"l0.{name}.w": (out, inner), f"l0.{name}.b": (out,)}
    shapes |= {f"l0.{name}.{kind}": (HIDDEN,) for name in ("aln", "oln") for kind in "wb"}

    header = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, 1, 2, FEED_FORWARD, len(PIECES), POSITIONS, TYPES, 1e-12, 32)
    texts = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()
    scores = np.linspace(0, -8, len(PIECES)).astype("<f4").tobytes()
    header += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(b"".join(texts))) + ends + scores + b"".join(texts)
    header += struct.pack("<iI", 1, 9) + struct.pack("<IBI", ord("é"), 1, ord("e"))

    expected, bodies = {}, {}
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        bodies[name], expected[name] = (values.tobytes(), values) if len(shape) == 1 else quantised(values)
    directory_size = 4 + sum(2 + len(name) + 1 + 4 + 8 + 8 for name in shapes)
    offset = len(header) + directory_size
    directory = struct.pack("<i", len(shapes))
    for name, shape in shapes.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", len(shape) - 1, int(np.prod(shape)), offset, len(bodies[name]))
        offset += len(bodies[name])
    return header + directory + b"".join(bodies.values()), expected


def test_weights_and_tokenizer_come_out(tmp_path: Path) -> None:
    content, expected = packed_file()
    (tmp_path / "e5.bin").write_bytes(content)
    target = tmp_path / "models" / "e5"
    convert_packed_e5(tmp_path / "e5.bin", target)
    convert_packed_e5(tmp_path / "e5.bin", target)

    weights = load_file(target / "model.safetensors")
    for name, source in [
        ("embeddings.word_embeddings.weight", "emb.word"),
        ("encoder.layer.0.intermediate.dense.weight", "l0.fi.w"),
        ("encoder.layer.0.output.LayerNorm.bias", "l0.oln.b"),
    ]:
        np.testing.assert_array_equal(weights[name], expected[source].astype(np.float16))
    assert json.loads((target / "config.json").read_text())["layer_norm_eps"] == 1e-12
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert tokenizer.encode("starry night").tokens == ["<s>", "▁star", "ry", "▁night", "</s>"]
    assert [path.name for path in target.parent.iterdir()] == ["e5"], "no temporary directory is left"


@pytest.mark.parametrize("kept", [0, 3, 20, 60, 300, 2000, -1])
def test_a_cut_file_is_refused_and_nothing_is_written(tmp_path: Path, kept: int) -> None:
    content, _ = packed_file()
    (tmp_path / "e5.bin").write_bytes(content[:kept])
    with pytest.raises(AssetError, match=r"truncated|not fit|does not begin"):
        convert_packed_e5(tmp_path / "e5.bin", tmp_path / "e5")
    assert [path.name for path in tmp_path.iterdir()] == ["e5.bin"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: b"GGUF" + content[4:], "not a packed E5 file"),
        (lambda content: content[:4] + b"\x02" + content[5:], "version 2"),
        (lambda content: content.replace(b"l0.fi.w", b"l0.xx.w"), "no tensor l0.fi.w"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, change, named: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "e5.bin").write_bytes(change(packed_file()[0]))
    with pytest.raises(AssetError, match=named):
        convert_packed_e5(tmp_path / "e5.bin", tmp_path / "e5")


def test_a_missing_file_is_an_asset_error(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="cannot read the packed encoder"):
        convert_packed_e5(tmp_path / "nothing.bin", tmp_path / "e5")
