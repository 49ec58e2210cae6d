"""Causal attention within the sequences of a packed row, in which a prefix that several share stands once.

Registered with transformers under the name `PACKED`; the model hands our `layout` through to it. On CUDA in half
precision it is one call of torch's varlen attention (FlashAttention); elsewhere one call of SDPA per sequence, which
computes nothing between sequences, as a mask over the whole row would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from research.errors import ConfigurationError, TrainingError

PACKED = "research_packed"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the sequences of a row of T tokens are.

    The row is cut into pieces; a sequence is a path of pieces, the first of which it may share with sequences before
    it. What it adds itself is a run of pieces at the end of its path, and these runs, one after the other, are the row.

    Attributes:
        pieces: their lengths, in tokens; none is empty.
        paths: per sequence the pieces that it consists of.
        new: per sequence how many pieces at the end of its path it adds; 0 if all of it stands there already.
        gather: [E] the tokens of all sequences, one after the other, shared ones repeated; None if that is the row.
        keep: [T] where each token of the row is in `gather`, at its first copy.
        bounds: [sequences + 1] int32, where each sequence begins in `gather`.
        longest: tokens of the longest sequence.
        masks: those made by `mask`, until `forget_masks`: they grow with the square of a sequence.
    """

    pieces: list[int]
    paths: list[list[int]]
    new: list[int]
    gather: Tensor | None
    keep: Tensor | None
    bounds: Tensor
    longest: int
    masks: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, pieces: list[int], paths: list[list[int]], device: torch.device) -> Layout:
        """The layout of a row whose pieces stand in the order in which the paths first come to them."""
        starts = [0, *accumulate(pieces)]
        gathered: list[int] = []
        where: dict[int, int] = {}
        lengths, new = [], []
        for path in paths:
            before, known = len(gathered), len(where)
            for piece in path:
                where.setdefault(piece, len(gathered))
                gathered.extend(range(starts[piece], starts[piece + 1]))
            lengths.append(len(gathered) - before)
            new.append(len(where) - known)
        keep = [where[piece] + offset for piece, length in enumerate(pieces) for offset in range(length)]
        shared = len(gathered) > starts[-1]
        return cls(
            pieces,
            paths,
            new,
            gather=torch.tensor(gathered, device=device) if shared else None,
            keep=torch.tensor(keep, device=device) if shared else None,
            bounds=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
            longest=max(lengths),
        )

    @classmethod
    def alone(cls, tokens: int, device: torch.device) -> Layout:
        """One sequence."""
        return cls.of([tokens], [[0]], device)

    def mask(self, queries: int, keys: int, like: Tensor) -> Tensor | None:
        """[queries, keys] mask of the tokens that a sequence adds to those before; None if it adds all."""
        if queries == keys:
            return None
        key = (queries, keys, like.dtype)
        if key not in self.masks:
            self.masks[key] = _causal_end(queries, keys, like.device).to(like.dtype)
        return self.masks[key]

    def forget_masks(self) -> None:
        """Once a row is computed, so that those of an update are not all there at once."""
        self.masks.clear()


def _causal_end(queries: int, keys: int, device: torch.device) -> Tensor:
    """[queries, keys] mask for the last `queries` of `keys` tokens: 0 where they may look, else -inf.

    As numbers, because with a boolean mask SDPA was slower on a CPU.
    """
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)
    return torch.zeros(queries, keys, device=device).masked_fill_(hidden, float("-inf"))


def require_whole_context(config: Any, tokens: int) -> None:
    """Refuse a model that looks back less far than an episode of `tokens` is long, before one is.

    Raises ConfigurationError that names the setting.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or window >= tokens or (kinds is not None and "sliding_attention" not in kinds):
        return
    raise ConfigurationError(
        f"episode.max_tokens: {tokens} tokens are more than the sliding window of this model ({window}), which the "
        f"learner does not compute; with the prompt, an episode has to be shorter than {window}"
    )


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, heads, T, d], key and value [1, kv heads, T, d] → [1, T, heads, d].

    Raises TrainingError if the model asks for what is not computed here.
    """
    if layout is None:
        raise TrainingError(
            f"{type(module).__name__} does not hand the layout of the row through; it cannot be trained"
        )
    if softcap is not None or s_aux is not None:
        raise TrainingError(f"{type(module).__name__} caps its attention or has attention sinks; it cannot be trained")
    if sliding_window is not None and layout.longest > sliding_window:
        raise TrainingError(
            f"an episode of {layout.longest} tokens is longer than the sliding window of {type(module).__name__} "
            f"({sliding_window} tokens); lower episode.max_tokens"
        )
    if dropout:
        raise TrainingError("attention dropout would make the learner another policy than the sampler")
    # Under autocast, the rotary embedding returns float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if value.is_cuda and value.dtype in (torch.bfloat16, torch.float16):
        return _varlen(query, key, value, layout, scaling), None
    return _by_sequence(query, key, value, layout, scaling), None


def _by_sequence(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    # `split` and not slices: its backward writes one tensor, where that of slices writes and adds one for each.
    queries, keys, values = (torch.split(tensor, layout.pieces, dim=2) for tensor in (query, key, value))
    outputs: list[Tensor] = []
    for path, new in zip(layout.paths, layout.new, strict=True):
        if not new:
            continue
        added, seen = _joined([queries[piece] for piece in path[-new:]]), _joined([keys[piece] for piece in path])
        mask = layout.mask(added.shape[2], seen.shape[2], query)
        outputs.append(
            scaled_dot_product_attention(
                added,
                seen,
                _joined([values[piece] for piece in path]),
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=2)


def _varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    def gathered(tensor: Tensor) -> Tensor:
        row = tensor[0].transpose(0, 1)
        return (row if layout.gather is None else row.index_select(0, layout.gather)).contiguous()

    output = varlen_attn(
        gathered(query),
        gathered(key),
        gathered(value),
        layout.bounds,
        layout.bounds,
        layout.longest,
        layout.longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return (output if layout.keep is None else output.index_select(0, layout.keep))[None]


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout says who sees whom."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
