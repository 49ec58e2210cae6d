"""A model divided over ranks (FSDP2), loaded without any rank ever holding a whole copy, and its tensors as files.

Parameters are sharded by rows. A file holds whole tensors, or a run of rows of each with its place in the metadata, so
a checkpoint of any number of ranks is read by any other number, bit for bit, and nothing is pickled.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from research.atomic_io import write_json
from research.errors import AssetError
from services.trainer.parallel.ranks import Ranks
from services.transport.nccl import DTYPES
from services.transport.safetensors_files import slices_of

# In the metadata of a file with parts of tensors: {name: [first row, rows in all]}.
ROWS = "rows"
INDEX = "model.safetensors.index.json"


def shard(model: Any, blocks: Iterable[nn.Module], ranks: Ranks, dtype: torch.dtype) -> None:
    """Divide a model over the ranks: each layer is a unit that is gathered when it computes, the rest is one more.

    Shards stay in float32; layers compute in `dtype`. Gradients are summed over ranks, not averaged: the weights of the
    loss are those of the whole update.
    """
    policy = MixedPrecisionPolicy()
    if dtype != torch.float32:
        # Inputs stay as they are: among those of the root are the weights of the loss, in float32.
        policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=ranks.mesh, mp_policy=policy)
    fully_shard(model, mesh=ranks.mesh, mp_policy=policy)
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def free_gathered(model: Any) -> None:
    """After a forward pass without a backward pass: give up what FSDP gathered of the root, which it keeps for it.

    Else the next forward pass would compute with weights that an optimizer step has changed since.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor; all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all ranks; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place_of(tensor: Tensor) -> tuple[int, int]:
    """First row of this rank, and rows of the whole tensor; (0, 1) for a scalar."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.shape[0] if tensor.dim() else 1
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0] if offset else 0, tensor.shape[0] if tensor.dim() else 1


def save_part(tensors: Mapping[str, Tensor], directory: Path, name: str, ranks: Ranks) -> None:
    """Write this rank's rows: `<name>.safetensors` if alone, else `<name>-00002-of-00004.safetensors`."""
    if ranks.is_alone:
        save_file({key: value.contiguous() for key, value in tensors.items()}, directory / f"{name}.safetensors")
        return
    own = {key: local(value).contiguous() for key, value in tensors.items()}
    places = {key: place_of(value) for key, value in tensors.items()}
    held = {key: value for key, value in own.items() if value.numel() or not value.dim()}
    path = directory / f"{name}-{ranks.rank + 1:05d}-of-{ranks.world:05d}.safetensors"
    save_file(held, path, metadata={ROWS: json.dumps({key: places[key] for key in held})})


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one tensor in one file."""

    file: Path
    first: int
    count: int


class SavedTensors:
    """The tensors of `<name>*.safetensors` in a directory, whatever number of ranks wrote them."""

    def __init__(self, directory: Path, name: str) -> None:
        self._parts: dict[str, list[_Part]] = defaultdict(list)
        files = sorted(directory.glob(f"{name}.safetensors")) or sorted(directory.glob(f"{name}-*.safetensors"))
        if not files:
            raise AssetError(f"{directory} holds no {name} in safetensors")
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                rows = json.loads((tensors.metadata() or {}).get(ROWS, "{}"))
                for key in tensors.keys():  # noqa: SIM118 (not a dict)
                    shape = tensors.get_slice(key).get_shape()
                    first = rows[key][0] if key in rows else 0
                    self._parts[key].append(_Part(file, first, shape[0] if shape else 1))

    def names(self) -> list[str]:
        return sorted(self._parts)

    def rows(self, name: str, first: int, count: int) -> Tensor:
        """Rows `first` to `first + count` of a tensor. Raises AssetError if they are not all there."""
        found: list[Tensor] = []
        for part in sorted(self._parts.get(name, []), key=lambda part: part.first):
            start, end = max(first, part.first), min(first + count, part.first + part.count)
            if start < end and start == first + sum(len(each) for each in found):
                with safe_open(part.file, framework="pt") as tensors:
                    found.append(tensors.get_slice(name)[start - part.first : end - part.first])
        if sum(len(each) for each in found) != count:
            raise AssetError(f"{name}: rows {first} to {first + count} are not in the checkpoint")
        return torch.cat(found) if found else torch.empty(0)

    def whole(self, name: str) -> Tensor:
        """A tensor that is in one piece; every rank may have written it."""
        part = self._parts[name][0]
        with safe_open(part.file, framework="pt") as tensors:
            return torch.as_tensor(tensors.get_tensor(name))

    def assembled(self, name: str) -> Tensor:
        """A tensor with all of its rows."""
        parts = self._parts[name]
        if len(parts) == 1 or parts[0].first == parts[1].first:
            return self.whole(name)
        return self.rows(name, 0, max(part.first + part.count for part in parts))

    def copy_into(self, name: str, tensor: Tensor) -> None:
        """Copy this rank's rows into a tensor, with its dtype."""
        own = local(tensor)
        with torch.no_grad():
            if not own.dim():
                own.copy_(self.whole(name))
            elif own.numel():
                own.copy_(self.rows(name, place_of(tensor)[0], own.shape[0]))


def load_rows(
    model: nn.Module,
    directory: Path,
    name: str = "model",
    *,
    trained_only: bool = False,
    known_as: Callable[[str], str | None] | None = None,
) -> None:
    """Copy this rank's rows of a model's state straight from files into the model.

    `known_as` tells what the files call a tensor, and None for one that is not there on purpose.

    Raises AssetError if a tensor is missing. Of tensors that are one (tied embeddings), one name is enough.
    """
    saved = SavedTensors(directory, name)
    there = set(saved.names())
    for own, tensor in one_by_one(model, trained_only=trained_only):
        names = [found for each in own if (found := known_as(each) if known_as else each) is not None]
        if not names:
            continue
        known = [each for each in names if each in there]
        if not known:
            raise AssetError(
                f"{directory} has no tensor {names[0]}; a model whose weights are renamed on loading cannot be trained "
                "in several processes"
            )
        saved.copy_into(known[0], tensor)


def one_by_one(model: nn.Module, *, trained_only: bool = False) -> list[tuple[list[str], Tensor]]:
    """Each tensor of a model's state once, with all names that it has; or only those that are trained."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if tensor.requires_grad or not trained_only:
            found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def write_whole(state: Mapping[str, Tensor], base: Path, directory: Path, ranks: Ranks) -> None:
    """Write the whole weights as an ordinary checkpoint: names and dtypes of `base`, values of a model's state.

    Alone, in the files that `base` has. With others, every rank gathers every tensor and keeps each `world`-th, so that
    all write at the same time, and no rank holds more than one whole tensor and its share.

    Raises AssetError if `base` has a tensor that the model does not have.
    """
    if ranks.is_alone:
        write_state(state, base, directory)
        return
    files = [f"model-{rank + 1:05d}-of-{ranks.world:05d}.safetensors" for rank in range(ranks.world)]
    own: dict[str, Tensor] = {}
    where: dict[str, str] = {}
    for number, (name, value) in enumerate(_gathered(state, base)):
        owner = number % ranks.world
        where[name] = files[owner]
        if owner == ranks.rank:
            own[name] = value.cpu().contiguous()

    def write() -> None:
        save_file(own, directory / files[ranks.rank], metadata={"format": "pt"})
        if ranks.leads:
            write_json(directory / INDEX, {"metadata": {}, "weight_map": where})

    ranks.together(write)


def gather_state(state: Mapping[str, Tensor], base: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Copies in host memory, by the names and in the dtypes of `base`, that no later update changes; {} but on rank 0.

    Every rank must ask; tensors are gathered one by one. Raises as `write_whole`.
    """
    gathered = _gathered(state, base)
    if ranks.leads:
        return {name: value.to("cpu", copy=True).contiguous() for name, value in gathered}
    for _ in gathered:
        pass
    return {}


def by_name(model: nn.Module) -> dict[str, Tensor]:
    """A model's state; a tensor with several names is there under each."""
    return {name: tensor.detach() for names, tensor in one_by_one(model) for name in names}


def _gathered(state: Mapping[str, Tensor], base: Path) -> Iterator[tuple[str, Tensor]]:
    for name, dtype in _named_dtypes(base):
        yield name, whole(_known(state, name, base).to(dtype))  # cast first: half as much travels


def write_state(state: Mapping[str, Tensor], base: Path, directory: Path) -> None:
    """Write whole tensors in the files, by the names and in the dtypes of `base`; raises as `write_whole`."""
    for file in sorted(base.glob("*.safetensors")):
        tensors = {name: _known(state, name, base).to(dtype).contiguous() for name, dtype in _named_dtypes(file)}
        save_file(tensors, directory / file.name, metadata={"format": "pt"})


def _known(state: Mapping[str, Tensor], name: str, base: Path) -> Tensor:
    if name not in state:
        raise AssetError(f"{base} has a tensor {name} that the model calls otherwise; it cannot be published")
    return state[name]


def _named_dtypes(base: Path) -> Iterator[tuple[str, torch.dtype]]:
    """Name and dtype of each tensor of a checkpoint or of one of its files, without reading the tensors."""
    for name, part in slices_of(base):
        if part.get_dtype() not in DTYPES:
            raise AssetError(f"{base}: {name} is of {part.get_dtype()}; weights are {', '.join(DTYPES)}")
        yield name, DTYPES[part.get_dtype()]
