"""What the policy server checks before it loads a byte of new weights."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from research.errors import AssetError, ConfigurationError
from services.policy.weights.checkpoint_checks import (
    require_same_tensors,
    resolve_inside,
    tensor_specs,
)
from services.transport.safetensors_files import weight_files

GOOD = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.ones(4)}


def checkpoint(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


def test_headers_tell_names_dtypes_and_shapes(tmp_path: Path) -> None:
    specs = tensor_specs(checkpoint(tmp_path / "good", GOOD))
    assert {name: (spec.dtype, spec.shape) for name, spec in specs.items()} == {
        "a": ("BF16", (2, 3)),
        "b": ("F32", (4,)),
    }


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": GOOD["a"]}, "b is missing"),
        ({**GOOD, "c": torch.ones(1)}, "c is not part of the model"),
        ({**GOOD, "b": torch.ones(5)}, r"b is F32 \[5\], not F32 \[4\]"),
        ({**GOOD, "a": torch.zeros(2, 3)}, r"a is F32 \[2, 3\], not BF16 \[2, 3\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    expected = tensor_specs(checkpoint(tmp_path / "served", GOOD))
    with pytest.raises(AssetError, match=message):
        require_same_tensors(tensor_specs(checkpoint(tmp_path / "new", tensors)), expected)


@pytest.mark.parametrize("cut", [0, 4, 9, 60, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    path = checkpoint(tmp_path / "cut", GOOD) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(AssetError):
        tensor_specs(path.parent)


def test_only_safetensors_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"pickle")
    with pytest.raises(AssetError, match="only safetensors"):
        weight_files(tmp_path)
    with pytest.raises(AssetError, match="only safetensors"):
        weight_files(tmp_path / "model.bin")


def test_paths_are_confined(tmp_path: Path) -> None:
    inside, outside = tmp_path / "runs", tmp_path / "elsewhere"
    (inside / "x").mkdir(parents=True)
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    assert resolve_inside(str(inside / "x"), inside) == (inside / "x").resolve()
    for path in (outside, inside / ".." / "elsewhere", inside / "link", Path("/etc")):
        with pytest.raises(ConfigurationError, match="weights_dir"):
            resolve_inside(str(path), inside)
    with pytest.raises(AssetError, match="does not exist"):
        resolve_inside(str(inside / "missing"), inside)


def test_a_tensor_that_is_in_two_files_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"weight": torch.ones(2)}, tmp_path / f"model-{number}.safetensors")
    with pytest.raises(AssetError, match="weight is in another file"):
        tensor_specs(tmp_path)


@pytest.mark.parametrize("header", [b"[]", b"7", b'{"weight": {}}', b'{"weight": {"dtype": 3, "shape": "x"}}', b"{"])
def test_a_header_that_is_no_table_of_tensors_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(AssetError, match="safetensors"):
        tensor_specs(tmp_path)


def test_a_link_to_weights_elsewhere_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "secret.safetensors")
    inside = tmp_path / "runs" / "version-1"
    inside.mkdir(parents=True)
    (inside / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(ConfigurationError, match="weights_dir"):
        resolve_inside(str(inside), tmp_path / "runs")


@pytest.mark.parametrize("name", ["zero\0byte", "lone\ud800", "n" * 300, "circle"])
def test_a_path_that_cannot_be_followed_is_refused_like_any_other(tmp_path: Path, name: str) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(ConfigurationError, match="cannot be followed") as refused:
        resolve_inside(str(tmp_path / name), tmp_path)
    str(refused.value).encode()  # as the answer to the request


def test_a_header_too_deep_to_read_is_an_invalid_header(tmp_path: Path) -> None:
    header = b"[" * 200_000
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(AssetError, match="invalid safetensors header"):
        tensor_specs(tmp_path)


def test_errors_of_ours_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(AssetError) as refused:
        tensor_specs(tmp_path)
    assert str(refused.value) == f"{tmp_path / 'model.safetensors'} is not a safetensors file"
