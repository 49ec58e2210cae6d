"""Checks on a checkpoint before its first byte is loaded: its location, and what its headers promise."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from research.errors import AssetError, ConfigurationError
from services.transport.safetensors_files import weight_files

_MAX_HEADER_BYTES = 100 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype and shape of one tensor, as a safetensors header states them."""

    dtype: str
    shape: tuple[int, ...]


class _Tensor(BaseModel):
    """A tensor in a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_TENSORS = TypeAdapter(dict[str, _Tensor])


def resolve_inside(path: str, root: Path) -> Path:
    """The resolved path, if it and the weights in it are below `root` (links followed).

    Raises ConfigurationError if they are not, AssetError if the path does not exist.
    """
    try:
        resolved, allowed = Path(path).resolve(), root.resolve()
        files = [file.resolve() for file in resolved.glob("*.safetensors")] if resolved.is_relative_to(allowed) else []
        exists = resolved.exists()
    # Of the path: zero bytes and lone surrogates, names that are too long or not ours to read, links in a circle.
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigurationError(f"path: {path!a} cannot be followed ({str(error)!a})") from error
    if not all(each.is_relative_to(allowed) for each in (resolved, *files)):
        raise ConfigurationError(
            f"path: {path} is not below policy.weights_dir, the only directory that weights are accepted from"
        )
    if not exists:
        raise AssetError(f"path: {path} does not exist on the policy server; is the disk shared with the trainer?")
    return resolved


def tensor_specs(path: Path) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes of all tensors of a checkpoint, from the headers alone.

    Raises AssetError if a file is not safetensors, or is shorter or longer than its header says.
    """
    specs: dict[str, TensorSpec] = {}
    for file in weight_files(path):
        found = _file_specs(file)
        if twice := specs.keys() & found.keys():
            raise AssetError(f"{file}: {min(twice)} is in another file of {path}, too")
        specs |= found
    return specs


def require_same_tensors(found: dict[str, TensorSpec], expected: dict[str, TensorSpec]) -> None:
    """Raise AssetError that names the first differences if a checkpoint does not fit the served model."""
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name} is not part of the model" for name in sorted(found.keys() - expected.keys())]
    faults += [
        f"{name} is {found[name].dtype} {list(found[name].shape)}, "
        f"not {expected[name].dtype} {list(expected[name].shape)}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise AssetError(f"the checkpoint does not fit the served model: {'; '.join(faults[:3])}{more}")


def _file_specs(file: Path) -> dict[str, TensorSpec]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
                raise AssetError(f"{file} is not a safetensors file")
            header = json.loads(stream.read(length))
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        tensors = _TENSORS.validate_python(header)
    except OSError as error:
        raise AssetError(f"cannot read {file}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise AssetError(f"{file} has an invalid safetensors header") from error
    end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if 8 + length + end != size:
        raise AssetError(f"{file} is cut off: it should have {8 + length + end} bytes and has {size}")
    return {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
