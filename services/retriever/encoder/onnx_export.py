"""ONNX graphs of an encoder: exported, fused, quantized and checked once, then taken from the cache.

The cache is under the data directory (a checkpoint may be read-only) and keyed by the checkpoint's digest, so
new weights never meet an old graph.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from research.errors import AssetError
from services.retriever.encoder.checkpoint import Checkpoint
from services.retriever.encoder.onnx_session import forward_of, open_session

_RECIPE = "r1"
_OPSET = 17
# Minimum cosine with torch on the check batch: fusion changes rounding only, int8 a little more.
_MIN_COSINE = {"model-fused.onnx": 0.9999, "model-int8.onnx": 0.98}


def exported_graph(checkpoint: Checkpoint, data: Path, *, int8: bool) -> Path:
    """The path of the fused fp32 graph, or of its int8 form; exported on the first call (some ten seconds).

    Raises:
        AssetError: the graph differs from the torch model: this architecture needs the torch backend.
    """
    slug = checkpoint.name.replace(":", "-").strip("./~").replace("/", "-")
    directory = data / "models" / "onnx" / f"{slug}-{checkpoint.digest[:12]}-{_RECIPE}"
    graph = directory / ("model-int8.onnx" if int8 else "model-fused.onnx")
    if graph.is_file():
        return graph
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export.", dir=directory) as scratch:
        fused = directory / "model-fused.onnx"
        if not fused.is_file():
            _publish(checkpoint, _export_fused(checkpoint, Path(scratch)), fused)
        if int8:
            _publish(checkpoint, _quantize(fused, Path(scratch)), graph)
    return graph


def _export_fused(checkpoint: Checkpoint, scratch: Path) -> Path:
    import torch
    from onnxruntime.transformers import optimizer

    from services.retriever.encoder.torch_model import load_sentence_model

    # The optimizer recognizes plain ("eager") attention in a graph of the older exporter; in other graphs it
    # silently fuses nothing.
    model = load_sentence_model(checkpoint, dtype=torch.float32, attention="eager")
    ids, mask = _check_batch(checkpoint)
    dynamic = {"input_ids": {0: "rows", 1: "tokens"}, "attention_mask": {0: "rows", 1: "tokens"}}
    plain, fused = scratch / "plain.onnx", scratch / "fused.onnx"
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.from_numpy(ids), torch.from_numpy(mask)),
            str(plain),
            input_names=["input_ids", "attention_mask"],
            output_names=["embeddings"],
            dynamic_axes={**dynamic, "embeddings": {0: "rows"}},
            opset_version=_OPSET,
            dynamo=False,
        )
    optimized = optimizer.optimize_model(
        str(plain),
        model_type="bert",
        num_heads=checkpoint.heads,
        hidden_size=checkpoint.dimension,
        opt_level=0,
    )
    optimized.save_model_to_file(str(fused))
    return fused


def _quantize(fused: Path, scratch: Path) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = scratch / "int8.onnx"
    with _without_advice():
        quantize_dynamic(
            str(fused),
            str(quantized),
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Attention"],
            # One scale per column raised the mean cosine with fp32 from .986 to .997 at the same speed. Seven-bit
            # weights prevent overflow on CPUs without VNNI and cost nothing measurable.
            per_channel=True,
            reduce_range=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    return quantized


@contextmanager
def _without_advice() -> Iterator[None]:
    """Suppress ONNX Runtime's advice to pre-process; the fusion has already done that."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _publish(checkpoint: Checkpoint, graph: Path, target: Path) -> None:
    import torch

    from services.retriever.encoder.torch_model import load_sentence_model

    ids, mask = _check_batch(checkpoint)
    model = load_sentence_model(checkpoint, dtype=torch.float32, attention="eager")
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    found = forward_of(open_session(graph, threads=1))(ids, mask)
    cosine = float((expected * found).sum(axis=1).min())
    if not cosine >= _MIN_COSINE[target.name]:
        raise AssetError(
            f"the ONNX graph of {checkpoint.name} differs from torch (cosine {cosine:.4f}); "
            "set encoder.backend and encoder.passage_backend to torch"
        )
    shutil.move(graph, target)


def _check_batch(checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of ids, one of them padded, as int64 [2, 12] with their mask."""
    ids = np.arange(100, 124, dtype=np.int64).reshape(2, 12)
    mask = np.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = checkpoint.pad_id, 0
    return ids, mask
