"""Turn a packed E5 file into an ordinary checkpoint.

That is a BertModel in safetensors, an XLM-R tokenizer, and the layout that sentence-transformers reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from builtin.packed_e5 import PackedE5, Pieces, Shape
from research.atomic_io import atomic_directory

_MASK = "<mask>"
_WORD_START = "▁"
# Name in a BERT checkpoint → name in the packed file, and the shape as attributes of Shape (out, in).
_MATRICES = {
    "attention.self.query": ("q", "hidden", "hidden"),
    "attention.self.key": ("k", "hidden", "hidden"),
    "attention.self.value": ("v", "hidden", "hidden"),
    "attention.output.dense": ("ao", "hidden", "hidden"),
    "intermediate.dense": ("fi", "feed_forward", "hidden"),
    "output.dense": ("fo", "hidden", "feed_forward"),
}
_NORMS = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}


def convert_packed_e5(source: Path, target: Path) -> None:
    """Write the checkpoint directory `target` from the packed file `source`; weights are stored as fp16.

    The directory appears complete or not at all; an existing one is replaced.

    Raises:
        AssetError: `source` is missing, truncated, or not a packed E5 file.
    """
    packed = PackedE5(source)
    with atomic_directory(target, replace=True) as partial:
        _write_weights(packed, partial / "model.safetensors")
        _write_json(partial / "config.json", _bert_config(packed.shape, packed.pieces))
        _write_tokenizer(packed, partial)
        _write_pooling(packed.shape, partial)


def _write_weights(packed: PackedE5, path: Path) -> None:
    from safetensors.numpy import save_file

    shape = packed.shape
    hidden = shape.hidden
    weights = {
        "embeddings.word_embeddings.weight": packed.tensor("emb.word", shape.vocabulary, hidden),
        "embeddings.position_embeddings.weight": packed.tensor("emb.pos", shape.positions, hidden),
        "embeddings.token_type_embeddings.weight": packed.tensor("emb.type", shape.token_types, hidden),
        "embeddings.LayerNorm.weight": packed.tensor("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": packed.tensor("emb.ln.b", hidden),
    }
    for layer in range(shape.layers):
        prefix = f"encoder.layer.{layer}"
        for name, (short, rows, columns) in _MATRICES.items():
            out, inner = getattr(shape, rows), getattr(shape, columns)
            weights[f"{prefix}.{name}.weight"] = packed.tensor(f"l{layer}.{short}.w", out, inner)
            weights[f"{prefix}.{name}.bias"] = packed.tensor(f"l{layer}.{short}.b", out)
        for name, short in _NORMS.items():
            weights[f"{prefix}.{name}.weight"] = packed.tensor(f"l{layer}.{short}.w", hidden)
            weights[f"{prefix}.{name}.bias"] = packed.tensor(f"l{layer}.{short}.b", hidden)
    halves = {name: weight.astype(np.float16) for name, weight in weights.items()}
    save_file(halves, path, metadata={"format": "pt"})
    # safetensors makes the file readable by its owner only.
    path.chmod(0o644)


def _bert_config(shape: Shape, pieces: Pieces) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float16",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.feed_forward,
        "hidden_act": "gelu",
        "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.token_types,
        # The file holds the fp32 value nearest to 1e-12; six digits recover the intended number.
        "layer_norm_eps": float(f"{shape.layer_norm_eps:.6g}"),
        "pad_token_id": pieces.pad,
    }


def _write_tokenizer(packed: PackedE5, directory: Path) -> None:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    pieces = packed.pieces
    bos, eos, pad, unk = (pieces.text(i) for i in (pieces.bos, pieces.eos, pieces.pad, pieces.unk))
    tokenizer = Tokenizer(models.Unigram(pieces.scored, unk_id=pieces.unk, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(_xlm_roberta_characters()), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_WORD_START, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=_WORD_START, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, pieces.bos), (eos, pieces.eos)],
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (bos, pad, eos, unk)]
        + [AddedToken(_MASK, special=True, lstrip=True, normalized=False)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "cls_token": bos,
        "sep_token": eos,
        "unk_token": unk,
        "pad_token": pad,
        "mask_token": _MASK,
        "model_max_length": packed.shape.positions,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_config)


def _xlm_roberta_characters() -> bytes:
    """The character table `nmt_nfkc` that XLM-R's tokenizer was trained with; sentencepiece carries it."""
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto())
    return bytes(model.normalizer_spec.precompiled_charsmap)


def _write_pooling(shape: Shape, directory: Path) -> None:
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        )
    ]
    pooling = {
        "word_embedding_dimension": shape.hidden,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
    }
    (directory / "1_Pooling").mkdir()
    _write_json(directory / "1_Pooling" / "config.json", pooling)
    _write_json(directory / "modules.json", modules)
    limits = {"max_seq_length": shape.positions, "do_lower_case": False}
    _write_json(directory / "sentence_bert_config.json", limits)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
